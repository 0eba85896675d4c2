"""Actors that compare relations for kmas are killed: steps compare for themselves, the run ends, the counts tell."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_negative_pool import ACTORS, ENOUGH, Disturbance, actor_processes, lines_of, total, training_until_enough

from distkg.cluster.kept_workers import KeptWorkers
from distkg.cluster.launch import launch_training, run_on_workers
from distkg.config import RunConfig
from distkg.data.generate import generate
from distkg.training.run import train_on_rank

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]

MOST_SECONDS = 240  # of training: a killed actor needs many to come back on a busy machine


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("graphs")
    for name, entities, triples, seed in (("small", 60, 400, 1), ("large", 100, 600, 2)):
        generate(str(folder / name), entities=entities, relations=5, triples=triples, seed=seed)
    return [str(folder / name) for name in ("small", "large")]


def pretraining(stores: list[str], *, seconds: float | None, epochs: int, **pool: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"graphs": stores},
            "model": {"name": "ultra", "options": {"width": 8, "layers": 2, "hidden": 8}},
            "objective": {"name": "self_adversarial", "margin": 0.0},
            "negatives": {
                "source": "kmas",
                "options": {"schedule": "constant", "refresh_steps": 10, "relations": 3},
                "count": 8,
                "pool": {"actors": ACTORS, "cpus_per_actor": 0.5, **pool},
            },
            "optimizer": {"name": "adam", "learning_rate": 0.001},
            "train": {
                "workers": 2,
                "epochs": epochs,
                "batch_size": 8,
                "steps_per_epoch": 50,
                "time_limit_seconds": seconds,
            },
            "evaluate": {"every": 1_000_000},
            "checkpoint": {"every": 1_000_000},
        }
    )


class WhereSteps(Disturbance):
    """Hears of reports with steps alone: the last one of a run may have none."""

    def __call__(self, record: dict[str, Any]) -> None:
        if record["negatives"]["delivered"] is not None:
            super().__call__(record)


def test_killed_actors_come_back_and_meanwhile_steps_compare(
    stores: list[str], tmp_path: Path, kept_workers: KeptWorkers
) -> None:
    """One of two, and then all."""
    run = tmp_path / "run"
    kill = WhereSteps(run, psutil.Process.kill, 1, ACTORS)
    config = pretraining(stores, seconds=MOST_SECONDS, epochs=100_000, max_age=60)
    result = run_on_workers(training_until_enough(), config, run, listener=kill, kept=kept_workers)
    lines = lines_of(run)
    assert len(kill.pids) == lines[-1]["restarts"] == 1 + ACTORS
    assert total(lines, "old") > 0, "what the dead owed was not counted"
    assert (run / ENOUGH).exists(), "the successors do not deliver"
    assert all(math.isfinite(json.loads(line)["loss"]) for line in (run / "metrics.jsonl").open())
    assert [each["graph"].rsplit("/", 1)[-1] for each in result["by_graph"]] == ["small", "large"]
    _, alive = psutil.wait_procs(actor_processes(), timeout=30)
    assert not alive, "actors outlive their run"


def test_in_sync_two_runs_are_the_same(stores: list[str], tmp_path: Path) -> None:
    losses = []
    for name in ("first", "second"):
        launch_training(pretraining(stores, seconds=None, epochs=2, sync=True), tmp_path / name)
        lines = lines_of(tmp_path / name)
        assert {line["delivered"] for line in lines} == {1.0}
        assert max(line["age_max"] for line in lines) == 9
        losses.append([json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").open()])
    assert losses[0] == losses[1]


def test_relations_of_embeddings_are_compared_by_an_actor(
    stores: list[str], tmp_path: Path, kept_workers: KeptWorkers
) -> None:
    parts = [{"source": "near_miss", "options": {"neighbours": 4}}, {"source": "kmas"}]
    for name, source in (("kmas", {"source": "kmas"}), ("mixture", {"source": "mixture", "options": {"parts": parts}})):
        settings = {
            "data": {"store": stores[1]},
            "model": {"name": "distmult", "dim": 8},
            "objective": {"name": "logistic"},
            "negatives": {**source, "count": 8, "pool": {"actors": 1, "cpus_per_actor": 0.5, "sync": True}},
            "train": {"workers": 2, "epochs": 10, "batch_size": 100},
            "evaluate": {"every": 100},
        }
        run_on_workers(train_on_rank, RunConfig.model_validate(settings), tmp_path / name, kept=kept_workers)
        lines = lines_of(tmp_path / name)
        assert {line["delivered"] for line in lines} <= {None, 1.0}, "no table is asked for before there are hard ones"
        assert lines[-1]["delivered"] == 1.0
        assert max(line["hard_share"] for line in lines) > 0.3
