"""When workers stay from run to run and when they are replaced; Ray itself is not started here."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train

from distkg.cluster import kept_workers
from distkg.cluster.kept_workers import GROWTH_BYTES, KeptWorkers
from distkg.cluster.watch.draining_nodes import NodesLeavingError
from distkg.cluster.watch.failures import FailureNotes
from distkg.cluster.watch.run_folder import RunFolderError
from distkg.cluster.worker_group import WorkersFailed
from distkg.cluster.worker_task import WorkerTask
from distkg.config import RunConfig

CONFIG = RunConfig.model_validate({"train": {"workers": 2}, "cluster": {"max_failures": 1}})
DIED = ray.exceptions.ActorDiedError()


class Group:
    """Group whose runs end as told, one after another: with an error by rank, or with a result."""

    made: list[Group]
    outcomes: list[Any]

    def __init__(self, workers: int, cluster: Any, name: str) -> None:
        assert (workers, cluster) == (2, CONFIG.cluster)
        assert name not in [group.name for group in self.made]  # a removed placement group may still hold its name
        self.name = name
        self.held: list[int] | Exception = [100, 200]
        self.ended = threading.Event()
        self.made.append(self)

    def run(self, function: Any) -> Any:
        outcome = self.outcomes.pop(0)
        if outcome == "until ended":
            assert self.ended.wait(60)
            outcome = {0: DIED, 1: DIED}
        if all(isinstance(error, Exception) for error in outcome.values()):
            raise WorkersFailed(outcome)
        return outcome

    def memory(self) -> list[int]:
        if isinstance(self.held, Exception):
            raise self.held
        return self.held

    def end(self) -> None:
        self.ended.set()


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> type[Group]:
    Group.made, Group.outcomes = [], []
    monkeypatch.setattr(kept_workers, "WorkerGroup", Group)
    return Group


def train(kept: KeptWorkers, run: Path) -> Any:
    task = WorkerTask(lambda *_, **__: {}, CONFIG.model_dump(), str(run), {}, "token")
    return kept.train(task, FailureNotes(run, CONFIG.cluster.max_failures))


def failures(run: Path) -> list[tuple[int, str, bool]]:
    lines = (run / "failures.jsonl").read_text().splitlines()
    return [(line["rank"], line["error"], line["restart"]) for line in map(json.loads, lines)]


def test_one_group_serves_run_after_run(group: type[Group], tmp_path: Path) -> None:
    kept = KeptWorkers(CONFIG)
    assert not kept.are_ready()
    group.outcomes = [{"a": 1}, {"a": 2}]
    assert train(kept, tmp_path) == {"a": 1}
    assert kept.are_ready()
    assert train(kept, tmp_path) == {"a": 2}
    assert len(group.made) == 1
    kept.close()
    assert group.made[0].ended.is_set()


def test_a_failure_is_noted_and_replaces_all_workers(group: type[Group], tmp_path: Path) -> None:
    kept = KeptWorkers(CONFIG)
    group.outcomes = [{1: DIED}, {"a": 1}]
    assert train(kept, tmp_path) == {"a": 1}
    assert [each.ended.is_set() for each in group.made] == [True, False]
    assert failures(tmp_path) == [(1, "its process died (killed, out of memory, or its node was lost)", True)]


def test_workers_that_leave_nodes_are_replaced_and_not_counted(group: type[Group], tmp_path: Path) -> None:
    kept = KeptWorkers(CONFIG)
    left = ray.exceptions.RayTaskError("run", "trace", NodesLeavingError("node a is taken away")).as_instanceof_cause()
    group.outcomes = [{0: left}, {0: left}, {1: DIED}, {0: left}, {"a": 1}]
    assert train(kept, tmp_path) == {"a": 1}
    assert [each.ended.is_set() for each in group.made] == [True, True, True, True, False]
    assert len(failures(tmp_path)) == 1


def test_more_failures_than_allowed_end_the_run_and_not_the_next_one(group: type[Group], tmp_path: Path) -> None:
    kept = KeptWorkers(CONFIG)
    lost = RuntimeError("Connection closed by peer")
    group.outcomes = [{1: DIED}, {0: lost, 1: DIED}, {"a": 1}]
    with pytest.raises(ray.train.WorkerGroupError) as caught:
        train(kept, tmp_path)
    assert caught.value.worker_failures == {0: lost, 1: DIED}
    assert [restart for _, _, restart in failures(tmp_path)] == [True, False, False]
    assert train(kept, tmp_path) == {"a": 1}
    assert [each.ended.is_set() for each in group.made] == [True, True, False]


def test_a_mistake_is_raised_as_the_worker_raised_it_and_replaces_all_workers(
    group: type[Group], tmp_path: Path
) -> None:
    kept, mistake = KeptWorkers(CONFIG), ValueError("the loss is nan")
    group.outcomes = [{0: ray.exceptions.RayTaskError("run", "trace", mistake).as_instanceof_cause()}]
    with pytest.raises(ValueError, match=r"^the loss is nan$") as caught:
        train(kept, tmp_path)
    assert caught.value is mistake
    assert failures(tmp_path) == [(0, "ValueError: the loss is nan", False)]
    assert group.made[0].ended.is_set()
    assert not kept.are_ready()


def test_workers_that_keep_memory_are_replaced_before_the_next_run(group: type[Group], tmp_path: Path) -> None:
    kept = KeptWorkers(CONFIG)
    group.outcomes = [{"a": 1}, {"a": 2}]
    train(kept, tmp_path)
    assert kept.are_ready()
    group.made[0].held = [100, 200 + GROWTH_BYTES]
    assert kept.are_ready()
    group.made[0].held = [100, 201 + GROWTH_BYTES]
    assert not kept.are_ready()
    assert group.made[0].ended.is_set()
    train(kept, tmp_path)
    group.made[1].held = [GROWTH_BYTES, GROWTH_BYTES]  # the first run of these workers
    assert kept.are_ready()


def test_workers_that_died_while_they_waited_are_replaced_and_are_no_failure(
    group: type[Group], tmp_path: Path
) -> None:
    kept = KeptWorkers(CONFIG)
    group.outcomes = [{"a": 1}, {"a": 2}]
    train(kept, tmp_path)
    group.made[0].held = WorkersFailed({0: DIED})
    assert not kept.are_ready()
    assert train(kept, tmp_path) == {"a": 2}
    assert not (tmp_path / "failures.jsonl").exists()


def test_closed_workers_end_in_the_middle_of_a_run_which_is_no_failure(group: type[Group], tmp_path: Path) -> None:
    kept, ended = KeptWorkers(CONFIG), []
    group.outcomes = ["until ended"]
    run = threading.Thread(target=lambda: ended.append(train(kept, tmp_path)))
    run.start()
    while not group.made:
        run.join(0.01)
    kept.close()
    run.join(60)
    assert ended == [{"stopped": None}]
    assert not (tmp_path / "failures.jsonl").exists()
    assert train(kept, tmp_path) == {"stopped": None}
    assert len(group.made) == 1


def test_a_node_that_does_not_see_the_run_folder_is_told(tmp_path: Path) -> None:
    task = WorkerTask(lambda *_, **__: {}, CONFIG.model_dump(), str(tmp_path / "elsewhere"), {}, "token")
    with pytest.raises(RunFolderError, match=r"elsewhere is not seen by the node of worker 1 \(.*every node sees"):
        task.on_kept_worker(1)
