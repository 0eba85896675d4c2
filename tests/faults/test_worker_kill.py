"""A worker that is killed in the middle of an epoch: the run goes on, and ends as if nothing had happened."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import run_ranks

from distkg.cluster.launch import launch_training, run_on_workers
from distkg.cluster.ray_train.launch import TrainingError
from distkg.cluster.watch.progress_monitor import Record
from distkg.config import RunConfig
from distkg.data.errors import StoreError
from distkg.data.generate import generate
from distkg.data.store.identity import StoreMismatchError
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank
from distkg.training.services import TrainOnRank

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]

EPOCHS = 12


def failures(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "failures.jsonl").read_text().splitlines()]


def run_config(store: Path, **cluster: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"store": str(store)},
            "model": {"name": "distmult", "dim": 32},
            "train": {"workers": 2, "epochs": EPOCHS, "batch_size": 128},
            "evaluate": {"every": 4},
            "checkpoint": {"every": 1},
            "cluster": cluster,
        }
    )


def pretraining_config(folder: Path) -> RunConfig:
    """ULTRA on two graphs."""
    for name, entities, triples, seed in (("small", 60, 400, 1), ("large", 200, 2000, 2)):
        generate(str(folder / name), entities=entities, relations=4, triples=triples, seed=seed)
    return RunConfig.model_validate(
        {
            "data": {"graphs": [str(folder / "small"), str(folder / "large")]},
            "model": {"name": "ultra", "options": {"width": 8, "layers": 3, "hidden": 8}},
            "objective": {"name": "self_adversarial", "margin": 0.0},
            "negatives": {"count": 8},
            "optimizer": {"name": "adam", "learning_rate": 0.005},
            "train": {"workers": 2, "epochs": EPOCHS, "batch_size": 16, "steps_per_epoch": 30},
            "evaluate": {"every": 4, "max_valid_triples": 30},
            "checkpoint": {"every": 1},
        }
    )


def training_with_a_kill(before: Callable[[], object] = lambda: None) -> TrainOnRank:
    """Training whose second worker kills itself, once, after a third of the epochs and off the beat of their ends, and
    calls ``before`` in that moment.

    A closure, for Ray sends those by value and named functions of a test, which workers cannot import, by name.
    """

    def train(config: RunConfig, run: Path, ranks: Ranks, *, resume: bool, listener: Any, services: Any) -> Record:
        def kill_when_under_way() -> None:
            metrics = run / "metrics.jsonl"
            while not metrics.exists() or metrics.read_text().count("\n") < EPOCHS // 3:
                time.sleep(0.005)
            (run / "killed").write_text("")
            before()
            os.kill(os.getpid(), signal.SIGKILL)

        if ranks.rank == 1 and not (run / "killed").exists():
            threading.Thread(target=kill_when_under_way, daemon=True).start()
        return train_on_rank(config, run, ranks, resume=resume, listener=listener, services=services)

    return train


def undisturbed(config: RunConfig, run: Path) -> Record:
    """The result of two ranks without Ray: the same, to the last bit, as ``test_graphs_on_ray.py`` holds."""
    result: Record = run_ranks(2, train, config, str(run))[0]
    return result


def train(ranks: Ranks, config: RunConfig, run: str) -> Record:
    return train_on_rank(config, Path(run), ranks)


def test_a_killed_worker_is_replaced_and_the_metrics_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    generate(str(tmp_path / "store"), entities=400, relations=6, triples=6000, seed=3)
    config = run_config(tmp_path / "store")
    calm = undisturbed(config, tmp_path / "calm")
    disturbed = run_on_workers(training_with_a_kill(), config, tmp_path / "disturbed")

    assert (tmp_path / "disturbed" / "killed").exists()
    assert [(line["rank"], line["restart"]) for line in failures(tmp_path / "disturbed")].count((1, True)) == 1
    assert disturbed["train"]["epochs"] == EPOCHS
    assert disturbed["metrics"]["test"]["queries"] == calm["metrics"]["test"]["queries"]
    assert disturbed["metrics"]["test"]["mrr"] == pytest.approx(calm["metrics"]["test"]["mrr"], abs=0.01)
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "disturbed" / "metrics.jsonl").open()]
    assert epochs == sorted(epochs), "the restart went back behind its checkpoint"
    assert epochs[-1] == EPOCHS


def test_a_worker_killed_in_pretraining_on_two_graphs_changes_nothing(tmp_path: Path) -> None:
    config = pretraining_config(tmp_path)
    calm = undisturbed(config, tmp_path / "calm")
    disturbed = run_on_workers(training_with_a_kill(), config, tmp_path / "disturbed")

    assert (tmp_path / "disturbed" / "killed").exists()
    assert [(line["rank"], line["restart"]) for line in failures(tmp_path / "disturbed")].count((1, True)) == 1
    # What is drawn is a function of seed and step, and all ranks hold all weights: the repeated steps are the same.
    assert disturbed["metrics"] == calm["metrics"]
    assert disturbed["by_graph"] == calm["by_graph"]
    lines = [[json.loads(line) for line in (tmp_path / run / "metrics.jsonl").open()] for run in ("calm", "disturbed")]
    assert [line["epoch"] for line in lines[1]] == [line["epoch"] for line in lines[0]]
    assert [line["loss"] for line in lines[1]] == [line["loss"] for line in lines[0]]


@pytest.mark.parametrize("replaced", [False, True], ids=["store gone", "store replaced"])
def test_a_store_that_goes_under_a_run_ends_it_and_it_is_resumed_when_the_store_is_back(
    replaced: bool, tmp_path: Path
) -> None:
    """The workers that run have read it; those that take their place cannot."""
    store, aside = tmp_path / "store", tmp_path / "aside"
    generate(str(store), entities=400, relations=6, triples=6000, seed=3)
    generate(str(tmp_path / "other"), entities=400, relations=6, triples=6000, seed=4)
    config = run_config(store)
    calm = undisturbed(config, tmp_path / "calm")

    def take_away() -> None:
        store.rename(aside)
        if replaced:
            (tmp_path / "other").rename(store)

    kind, text = (
        (StoreMismatchError, "entities.parquet of store .* differs from the one")
        if replaced
        else (StoreError, f"there is no store at {store}")
    )
    with pytest.raises(kind, match=text):
        run_on_workers(training_with_a_kill(take_away), config, tmp_path / "run")
    assert [line["restart"] for line in failures(tmp_path / "run")][-1] is False
    if replaced:
        store.rename(tmp_path / "other")
    aside.rename(store)
    result = launch_training(config, tmp_path / "run", resume=True)
    assert result["train"]["epochs"] == EPOCHS
    assert result["metrics"]["test"]["mrr"] == pytest.approx(calm["metrics"]["test"]["mrr"], abs=0.01)


def test_workers_that_keep_dying_end_the_run_with_the_reason(tmp_path: Path) -> None:
    def die(config: Any, run: Path, ranks: Any, *, resume: bool, listener: Any, services: Any) -> dict[str, Any]:
        with (run / "attempts").open("a") as file:
            file.write(f"{ranks.rank}\n")
        ranks.barrier()
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.barrier()
        return {}

    with pytest.raises(TrainingError, match=r"(?s)after 1 restarts.*worker 1: its process died.*--resume"):
        run_on_workers(die, run_config(tmp_path / "store", max_failures=1), tmp_path / "run")
    assert (tmp_path / "run" / "attempts").read_text().count("1\n") == 2
    assert [line["restart"] for line in failures(tmp_path / "run") if line["rank"] == 1] == [True, False]
