"""Actors that draw negatives are killed, hang or talk nonsense: the run ends, the loss is finite, the counts tell."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faulty_actors
import numpy as np
import psutil
import pytest
import ray
import torch
from ray._private.internal_api import get_memory_info_reply
from typer.testing import CliRunner

from distkg.cli import app
from distkg.cluster.kept_workers import KeptWorkers
from distkg.cluster.launch import launch_training, run_on_workers
from distkg.cluster.sampling import actor_link, negative_pool
from distkg.config import RunConfig
from distkg.data.generate import generate
from distkg.negatives.prefetch.messages import Reply
from distkg.negatives.prefetch.pool_events import NegativePoolError
from distkg.training.run import train_on_rank
from distkg.training.services import TrainOnRank

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]

MOST_SECONDS = 240  # of training: a killed actor needs many to come back on a busy machine
ACTORS = 2
ENOUGH = "enough"  # a file in the run folder that ends the training


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph") / "store"
    generate(str(folder), entities=300, relations=5, triples=4000, seed=2)
    return folder


def run_config(store: Path, *, seconds: float | None = MOST_SECONDS, epochs: int = 100_000, **pool: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"store": str(store)},
            "model": {"name": "distmult", "dim": 16},
            "objective": {"name": "logistic"},
            "negatives": {
                "source": "near_miss",
                "options": {"neighbours": 8},
                "count": 4,
                "pool": {"actors": ACTORS, "cpus_per_actor": 0.5, "max_age": 100_000, **pool},
            },
            "optimizer": {"name": "rowwise_adagrad", "learning_rate": 0.01},
            "train": {"workers": 2, "epochs": epochs, "batch_size": 200, "time_limit_seconds": seconds},
            "evaluate": {"every": 1_000_000},
            "checkpoint": {"every": 1_000_000},
        }
    )


def actor_processes() -> list[psutil.Process]:
    """Of the cluster that this process started, and of no other on this machine."""
    ours = psutil.Process().children(recursive=True)
    return [each for each in ours if is_actor(each)]


@pytest.fixture(autouse=True)
def no_actor_outlives_its_run() -> Iterator[None]:
    """Ray takes seconds to kill one that was stopped, which the next test would take for one of its own."""
    yield
    _, alive = psutil.wait_procs(actor_processes(), timeout=30)
    assert not alive, "actors outlive their run"


def is_actor(process: psutil.Process) -> bool:
    try:
        # While a method runs, its name follows that of the class.
        return "".join(process.cmdline()[:1]).startswith("ray::NegativeActor")
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


class Disturbance:
    """Does something to the processes of actors once all deliver, again once all is well, and then ends the run.

    Attributes:
        pids: of the processes that it was done to.
    """

    def __init__(self, run: Path, act: Callable[[psutil.Process], None], *victims: int) -> None:
        self.pids: list[int] = []
        self._run, self._act, self._rounds = run, act, list(victims)

    def __call__(self, record: dict[str, Any]) -> None:
        came, living = record["negatives"], actor_processes()
        # One of two cannot deliver more than half; a line at the end of an epoch may have no steps, and none delivered.
        if (came["delivered"] or 0) <= 0.5 or len(living) < ACTORS or came["restarts"] < len(self.pids):
            return
        if not self._rounds:
            (self._run / ENOUGH).write_text("")
            return
        for process in living[: self._rounds.pop(0)]:
            self.pids.append(process.pid)
            self._act(process)


def training_until_enough() -> TrainOnRank:
    """Training that reports every second and ends where the file says so. A closure, which Ray sends by value."""

    def train(config: Any, run: Path, ranks: Any, *, resume: bool, listener: Any, services: Any) -> dict[str, Any]:
        from distkg.training import run as module

        should_continue = module.Training._should_continue

        def go_on_unless_enough(self: Any, step: int) -> bool:
            enough = ranks.broadcast(torch.tensor([float((run / ENOUGH).exists())]))
            return should_continue(self, step) and not bool(enough)

        with pytest.MonkeyPatch.context() as patch:  # the worker serves other tests too
            patch.setattr(module, "REPORT_SECONDS", 1.0)
            patch.setattr(module.Training, "_should_continue", go_on_unless_enough)
            return module.train_on_rank(config, run, ranks, resume=resume, listener=listener, services=services)

    return train


def test_one_that_owes_takes_nothing_from_the_others(store: Path, tmp_path: Path, kept_workers: KeptWorkers) -> None:
    stop = Disturbance(tmp_path / "run", lambda process: process.send_signal(signal.SIGSTOP), 1)
    # A step waits long enough for an actor that works, on a machine with other work too, and in vain for one that owes.
    config = run_config(store, seconds=20, hung_after=1000.0, timeout=0.1)
    run_on_workers(training_until_enough(), config, tmp_path / "run", listener=stop, kept=kept_workers)
    assert len(stop.pids) == 1
    lines = lines_of(tmp_path / "run")
    later = [line["delivered"] for line in lines[len(lines) // 2 :] if line["delivered"] is not None]
    assert sum(later) / len(later) > 0.5


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["negatives"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def total(lines: list[dict[str, Any]], name: str) -> int:
    return sum(line[name] for line in lines)


def test_killed_actors_come_back_and_the_run_goes_on(store: Path, tmp_path: Path, kept_workers: KeptWorkers) -> None:
    """One of two, and then all."""
    run = tmp_path / "run"
    kill = Disturbance(run, psutil.Process.kill, 1, ACTORS)
    result = run_on_workers(training_until_enough(), run_config(store), run, listener=kill, kept=kept_workers)
    lines = lines_of(run)
    assert len(kill.pids) == lines[-1]["restarts"] == 1 + ACTORS
    for later in (False, True):
        owed = [line for line in lines if (line["restarts"] > 1) is later]
        counted = sum(total(owed, why) for why in ("late", "refused", "lost"))
        assert counted > 0, f"what the dead owed {'at last' if later else 'at first'} was not counted"
    (warning,) = [text for line in lines for text in line.get("warnings", []) if "it died" in text]
    assert "It is being replaced" in warning
    assert (run / ENOUGH).exists(), "the successors do not deliver"
    assert math.isfinite(result["metrics"]["test"]["mrr"])


def test_an_actor_that_hangs_is_restarted(store: Path, tmp_path: Path, kept_workers: KeptWorkers) -> None:
    run = tmp_path / "run"
    stop = Disturbance(run, lambda process: process.send_signal(signal.SIGSTOP), 1)
    run_on_workers(training_until_enough(), run_config(store, hung_after=8.0), run, listener=stop, kept=kept_workers)
    lines = lines_of(run)
    # On an overloaded machine an actor may take longer than that to start, and is restarted too.
    assert lines[-1]["restarts"] == lines[-1]["hung"] >= 1
    assert total(lines, "late") > 0
    assert any("it did not answer for 8 s" in text for line in lines for text in line.get("warnings", []))
    assert (run / ENOUGH).exists(), "the successor does not deliver"


def test_replies_of_wrong_shape_and_of_not_a_number_are_counted(
    store: Path, tmp_path: Path, kept_workers: KeptWorkers
) -> None:
    def spoiled(reply: Reply | None, number: int) -> Reply | None:
        if reply is None or number % 3 == 0:
            return reply
        wrong = reply.entities[:, 1:] if number % 3 == 1 else np.full(reply.entities.shape, np.nan)
        return Reply(wrong, reply.mask, reply.version)

    def train(config: Any, run: Path, ranks: Any, *, resume: bool, listener: Any, services: Any) -> dict[str, Any]:
        def spoiling(key: str) -> Any:
            pool = services.pool_of(key)
            take = pool.take
            pool.take = lambda number, timeout: spoiled(take(number, timeout), number)
            return pool

        return train_on_rank(
            config, run, ranks, resume=resume, listener=listener, services=replace(services, pool_of=spoiling)
        )

    config = run_config(store, seconds=None, epochs=12, sync=True)
    result = run_on_workers(train, config, tmp_path / "run", kept=kept_workers)
    lines = lines_of(tmp_path / "run")
    # Two thirds of what came, and in sync all of it comes, however busy the machine is.
    came = 2 * 4000 * result["train"]["epochs"] - sum(total(lines, why) for why in ("late", "old", "refused"))
    assert came > 40_000
    assert total(lines, "broken") == pytest.approx(came * 2 / 3, rel=0.1)
    assert math.isfinite(result["metrics"]["test"]["mrr"])


def test_in_sync_two_runs_are_the_same(store: Path, tmp_path: Path) -> None:
    losses = []
    for name in ("first", "second"):
        config = run_config(store, seconds=None, epochs=6, sync=True)
        launch_training(config, tmp_path / name)
        assert {line["delivered"] for line in lines_of(tmp_path / name)} == {1.0}
        losses.append([json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").open()])
    assert losses[0] == losses[1]


def test_a_store_without_what_a_source_needs_ends_the_run_with_the_reason(store: Path, tmp_path: Path) -> None:
    settings = run_config(store).model_dump()
    settings["negatives"] |= {"source": "typed", "options": {}}
    with pytest.raises(ValueError, match="entity_types"):
        launch_training(RunConfig.model_validate(settings), tmp_path / "run")


MISTAKES = {
    "RaisesInDraw": r"source near_miss, drawing negatives for step \d+: UserError: error 7: no luck today",
    "RepliesUnreadably": r"gave a reply to draw that cannot be deserialised: ValueError: invalid literal",
    "RaisesInConstructor": r"cannot be created: .*error 7: no luck today",
    "DiesInMaking": r"it was restarted 3 times, without a reply between them",
}


@pytest.mark.parametrize("fault", MISTAKES)
def test_a_mistake_of_a_source_ends_the_run_with_its_message(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(negative_pool, "NegativeActor", getattr(faulty_actors, fault))
    # Each restart imports torch anew; that it is ten is held in test_actor_link.py.
    monkeypatch.setattr(actor_link, "MOST_RESTARTS", 3)
    with pytest.raises(NegativePoolError, match=rf"negative actor [01]: .*{MISTAKES[fault]}"):
        launch_training(run_config(store, seconds=None, epochs=100), tmp_path / "run")
    assert_no_restart(tmp_path / "run")


def assert_no_restart(run: Path) -> None:
    failures = run / "failures.jsonl"
    assert not failures.exists() or '"restart": true' not in failures.read_text()


def test_the_command_ends_with_that_message_and_exit_code_2(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negative_pool, "NegativeActor", faulty_actors.RaisesInMaking)
    (tmp_path / "run.yaml").write_text(run_config(store, fallback="uniform").to_yaml())
    result = CliRunner().invoke(app, ["train", str(tmp_path / "run.yaml"), "--run", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "error: negative actor 0: making source near_miss: UserError: error 7: no luck today" in result.stderr
    assert "Traceback" not in result.output
    assert_no_restart(tmp_path / "run")


def test_a_mistake_is_one_warning_and_a_count_where_the_fallback_was_chosen(
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kept_workers: KeptWorkers,
) -> None:
    monkeypatch.setattr(negative_pool, "NegativeActor", faulty_actors.RaisesInDraw)
    chosen = run_config(store, seconds=None, epochs=10, fallback="uniform", sync=True)
    result = run_on_workers(train_on_rank, chosen, tmp_path / "run", kept=kept_workers)
    lines = lines_of(tmp_path / "run")
    assert total(lines, "failed") > 0
    assert {line["restarts"] for line in lines} == {0}
    assert math.isfinite(result["metrics"]["test"]["mrr"])
    output = capsys.readouterr().out
    assert output.count("WARNING: ") == 1
    assert "UserError: error 7: no luck today" in output


def marked(store: Path, tmp_path: Path) -> Path:
    """A copy of the store, beside which the actors of one test leave their marks."""
    return Path(shutil.copytree(store, tmp_path / "store"))


@pytest.mark.parametrize("fault", ["DiesOnceInPublication", "DiesOnceInDraw"])
def test_in_sync_an_actor_that_is_killed_at_work_does_not_end_the_group(
    fault: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_workers: KeptWorkers
) -> None:
    monkeypatch.setattr(negative_pool, "NegativeActor", getattr(faulty_actors, fault))
    config = run_config(marked(store, tmp_path), seconds=None, epochs=6, sync=True)
    run_on_workers(train_on_rank, config, tmp_path / "run", kept=kept_workers)
    assert not (tmp_path / "run" / "failures.jsonl").exists()
    lines = lines_of(tmp_path / "run")
    assert lines[-1]["restarts"] == ACTORS
    assert lines[-1]["delivered"] == 1.0


@pytest.mark.parametrize("fault", ["DiesOnceInPublication", "DiesOnceInDraw"])
def test_an_actor_that_is_killed_at_work_is_replaced_and_delivers(
    fault: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_workers: KeptWorkers
) -> None:
    monkeypatch.setattr(negative_pool, "NegativeActor", getattr(faulty_actors, fault))
    run, marks = tmp_path / "run", marked(store, tmp_path)

    def end_when_both_are_back(record: dict[str, Any]) -> None:
        came = record["negatives"]
        if came["restarts"] >= ACTORS and (came["delivered"] or 0) > 0.5:
            (run / ENOUGH).write_text("")

    run_on_workers(training_until_enough(), run_config(marks), run, listener=end_when_both_are_back, kept=kept_workers)
    assert (run / ENOUGH).exists(), "the successors do not deliver"
    assert not (run / "failures.jsonl").exists()
    assert len(list(tmp_path.glob("store.died-*"))) == lines_of(run)[-1]["restarts"] == ACTORS


def test_an_object_store_that_is_full_spills_and_the_run_goes_on(
    store: Path, tmp_path: Path, kept_workers: KeptWorkers
) -> None:
    """Objects of another program hold three quarters more than the store has room for."""
    run, held = tmp_path / "run", list[ray.ObjectRef]()
    capacity = ray.cluster_resources()["object_store_memory"]

    def fill_and_end(record: dict[str, Any]) -> None:
        came = record["negatives"]["delivered"] or 0
        if not held and came > 0.5:
            held.extend(ray.put(np.full(16 << 20, i, np.uint8)) for i in range(int(1.75 * capacity) >> 24))
        elif held and spilled_bytes() > 0 and came > 0.5:
            (run / ENOUGH).write_text("")

    run_on_workers(training_until_enough(), run_config(store), run, listener=fill_and_end, kept=kept_workers)
    assert (run / ENOUGH).exists(), f"nothing spilled or nothing delivered: {spilled_bytes()}"
    assert not (run / "failures.jsonl").exists()
    assert int(ray.get(held[0])[-1]) == 0
    assert lines_of(run)[-1]["restarts"] == 0


def spilled_bytes() -> int:
    (node,) = ray.nodes()
    stats = get_memory_info_reply(None, node["NodeManagerAddress"], node["NodeManagerPort"]).store_stats
    return int(stats.spilled_bytes_total)


def test_an_actor_that_hangs_in_its_first_draw_is_killed(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_workers: KeptWorkers
) -> None:
    monkeypatch.setattr(negative_pool, "NegativeActor", faulty_actors.HangsInFirstDraw)
    # In sync, so that the run cannot end before the actors are back.
    config = run_config(marked(store, tmp_path), seconds=None, epochs=6, sync=True, hung_after=10.0)
    run_on_workers(train_on_rank, config, tmp_path / "run", kept=kept_workers)
    lines = lines_of(tmp_path / "run")
    assert lines[-1]["hung"] >= ACTORS
    assert lines[-1]["delivered"] == 1.0
