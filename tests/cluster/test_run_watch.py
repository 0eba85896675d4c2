"""What is known of workers, and what is concluded from it; Ray itself is not started here."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import ray
import ray.train
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from distkg.cluster.ray_train.policies import FailurePolicy
from distkg.cluster.session.ray_session import ClusterError
from distkg.cluster.watch import heartbeats, node_processes, run_watch
from distkg.cluster.watch.draining_nodes import NodesLeavingError
from distkg.cluster.watch.failures import FailureNotes
from distkg.cluster.watch.heartbeats import Order, RunWatch, Sign, Worker, WorkerProcess
from distkg.cluster.watch.process_start import seconds_from_boot
from distkg.cluster.watch.run_folder import note_hung, take_hung
from distkg.cluster.watch.run_watch import Supervisor
from distkg.config import RunConfig

FIRST, SECOND = WorkerProcess("node", 11, 1.0), WorkerProcess("node", 12, 1.0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(node_processes, "SAMPLE_SECONDS", 0.5)


def run(steps: Awaitable[Any]) -> Any:
    return asyncio.run(cast(Any, steps))


def test_a_worker_hears_of_a_stop_while_it_waits() -> None:
    async def steps() -> tuple[Order, Order]:
        watch = RunWatch()
        before = await watch.sign(0, FIRST, Sign(0.0, False))
        under_way = asyncio.create_task(watch.sign(0, FIRST, Sign(0.0, False)))
        await asyncio.sleep(0)
        await watch.stop()
        return before, await under_way

    assert run(steps()) == (Order(stop=False), Order(stop=True))


def test_the_workers_of_a_group_hear_that_nodes_are_taken_away_and_their_successors_do_not() -> None:
    async def steps() -> list[Order]:
        watch = RunWatch()
        waiting = asyncio.create_task(watch.sign(0, FIRST, Sign(0.0, True)))
        await asyncio.sleep(0)
        for sentence in ("node a is taken away in 9 s", "node a is taken away in 8 s"):
            await watch.leave_nodes([FIRST, SECOND], sentence)
        heard = [await waiting, await watch.sign(1, SECOND, Sign(0.0, True))]
        heard.append(await watch.sign(0, FIRST._replace(pid=99), Sign(0.0, False)))
        await watch.stop()
        return [*heard, await watch.sign(1, SECOND, Sign(0.0, True))]

    leave = Order(leaving="node a is taken away in 9 s")
    assert run(steps()) == [leave, leave, Order(), leave._replace(stop=True)]


def test_draining_nodes_are_left_by_all_workers_if_they_hold_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, ordered = Told(monkeypatch, tmp_path, {}, actors=False), []
    others = worker(WorkerProcess("other", 12, 1.0))
    workers = {0: worker(FIRST), 1: worker(SECOND), 2: others, 3: replace(worker(FIRST), left=True)}
    monkeypatch.setattr(Supervisor, "_workers", lambda self: workers)
    leave_nodes = SimpleNamespace(remote=lambda *order: ordered.append(order))
    monkeypatch.setattr(Told, "leave_nodes", leave_nodes, raising=False)
    names = {"node": "spot-1", "other": "spot-2", "third": "spot-3"}
    monkeypatch.setattr(
        ray, "nodes", lambda: [{"NodeID": node, "NodeManagerHostname": name} for node, name in names.items()]
    )
    told.supervisor._leave_nodes({"third": 30.0})
    assert ordered == []
    told.supervisor._leave_nodes({"node": 29.6, "third": 30.0})
    told.supervisor._leave_nodes({"other": None, "node": -1.0})
    processes = [FIRST, SECOND, others.process]
    assert ordered == [
        (processes, "node spot-1 (workers 0, 1) is taken away in 30 s"),
        (
            processes,
            "node spot-1 (workers 0, 1) is taken away in 0 s and node spot-2 (worker 2) is taken away",
        ),
    ]


def test_workers_that_leave_nodes_have_not_failed(tmp_path: Path) -> None:
    notes = FailureNotes(tmp_path, max_failures=1)
    lost = RuntimeError("Connection closed by peer")
    for _ in range(3):
        notes.after_exception(None, {0: NodesLeavingError("node a is taken away"), 1: lost})
    assert not (tmp_path / "failures.jsonl").exists()
    notes.after_exception(None, {1: lost})
    assert '"restart": true' in (tmp_path / "failures.jsonl").read_text()
    with pytest.raises(ValueError, match="a mistake"):
        notes.after_exception(None, {0: NodesLeavingError("node a is taken away"), 1: ValueError("a mistake")})


def test_ray_train_does_not_count_workers_that_leave_nodes() -> None:
    policy = FailurePolicy(ray.train.FailureConfig(max_failures=1))
    left = ray.train.WorkerGroupError("", {0: NodesLeavingError("node a is taken away")})
    lost = ray.train.WorkerGroupError("", {0: RuntimeError("Connection closed by peer")})
    decisions = [policy.make_decision(error) for error in (left, left, lost, left, lost)]
    retry, end = FailureDecision.RETRY, FailureDecision.RAISE
    assert decisions == [retry, retry, retry, retry, end]


def test_a_stop_waits_for_every_worker_that_has_unsaved_progress() -> None:
    async def steps() -> list[bool]:
        watch, seen = RunWatch(), []
        await watch.sign(0, FIRST, Sign(0.0, True))
        await watch.sign(1, SECOND, Sign(0.0, True))
        waiting = asyncio.create_task(watch.nothing_unsaved())
        await watch.leave(0, FIRST)
        await asyncio.sleep(0.15)
        seen.append(waiting.done())
        await watch.leave(1, SECOND)
        seen.append(await waiting)
        await watch.sign(1, SECOND, Sign(0.0, True))  # said before it left, heard after
        seen.append(await watch.nothing_unsaved())
        return seen

    assert run(steps()) == [False, True, True]


def test_before_training_and_without_workers_nothing_is_unsaved() -> None:
    async def steps() -> bool:
        watch = RunWatch()
        empty = await watch.nothing_unsaved()
        await watch.sign(0, FIRST, Sign(0.0, unsaved=False, stopping=True))
        return empty and await watch.nothing_unsaved()

    assert run(steps())


def test_a_heartbeat_from_before_the_order_to_stop_says_nothing() -> None:
    """Training may have begun after it."""

    async def steps() -> list[bool]:
        watch, seen = RunWatch(), []
        await watch.sign(0, FIRST, Sign(0.0, unsaved=False))
        await watch.stop()
        waiting = asyncio.create_task(watch.nothing_unsaved())
        for sign in (Sign(0.0, unsaved=True, stopping=True), Sign(0.0, unsaved=False, stopping=True)):
            await asyncio.sleep(0.15)
            seen.append(waiting.done())
            await watch.sign(0, FIRST, sign)
        return [*seen, await waiting]

    assert run(steps()) == [False, False, True]


def test_a_worker_is_idle_from_when_its_processor_time_stands_still() -> None:
    async def steps() -> list[Worker]:
        watch, seen = RunWatch(), []
        for cpu in (0.0, 5.0, 5.0, 5.001, 5.5):
            await watch.sign(0, FIRST, Sign(cpu, False))
            seen.append((await watch.workers())[0])
        return seen

    idle = [worker.idle for worker in run(steps())]
    assert idle[1] < idle[2] < idle[3]
    assert idle[4] < idle[2]


def test_a_successor_takes_the_place_of_a_worker() -> None:
    async def steps() -> dict[int, Worker]:
        watch = RunWatch()
        await watch.sign(0, FIRST, Sign(9.0, True))
        await watch.sign(0, SECOND, Sign(1.0, False))
        await watch.leave(0, FIRST)  # of the one before: too late
        await watch.forget(0, FIRST)
        return await watch.workers()

    worker = run(steps())[0]
    assert (worker.process, worker.left) == (SECOND, False)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    code = "import sys, time\nprint('up', flush=True)\nif sys.stdin.readline() == 'work':\n  while True: pass"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    if process.stdin is not None:
        process.stdin.close()


def known(process: subprocess.Popen[bytes]) -> WorkerProcess:
    return WorkerProcess("node", process.pid, seconds_from_boot(process.pid))


def test_a_process_is_busy_idle_or_gone(child: subprocess.Popen[bytes]) -> None:
    examine, process = cast(Any, node_processes.examine)._function, known(child)
    assert examine(process) == "idle"
    assert child.stdin is not None
    child.stdin.write(b"work")
    child.stdin.close()
    assert examine(process) == "busy"
    psutil.Process(child.pid).suspend()
    assert examine(process) == "idle"
    assert examine(process._replace(born=1.0)) == "gone", "the number belongs to another process by now"
    cast(Any, node_processes.kill)._function(process._replace(born=1.0))
    assert child.poll() is None
    cast(Any, node_processes.kill)._function(process)  # also while it is stopped
    assert child.wait(30) == -9
    assert examine(process) == "gone"


def test_processes_at_work_are_found_by_their_titles() -> None:
    at_work = cast(Any, node_processes.processes_at_work)._function
    code = "import sys\nprint('up', flush=True)\nwhile True: pass"
    process = subprocess.Popen(["ray::NegativeActor.draw", "-c", code], executable=sys.executable, stdout=-1)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert at_work(("ray::NegativeActor",))
        assert not at_work(("ray::Nobody",))
    finally:
        process.kill()
        process.communicate()


class Told:
    """A supervisor whose watch, nodes and processes are made up."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, states: dict[WorkerProcess, str], actors: bool
    ) -> None:
        self.killed: list[WorkerProcess] = []
        self.said: list[str] = []
        self.errors: list[Exception] = []
        monkeypatch.setattr(run_watch, "_start_watch", lambda name: self)
        monkeypatch.setattr(run_watch, "examined", lambda processes: {p: states[p] for p in processes if p in states})
        monkeypatch.setattr(run_watch, "actors_at_work", lambda: actors)
        monkeypatch.setattr(run_watch, "on_node", lambda node, function: self)
        config = RunConfig.model_validate({"cluster": {"hung_after": 100, "wait_seconds": 200}})
        self.supervisor = Supervisor(config, folder, self.said.append, self.errors.append)

    @property
    def forget(self) -> Any:
        return type("Forget", (), {"remote": staticmethod(lambda rank, process: None)})

    def remote(self, process: WorkerProcess) -> None:
        self.killed.append(process)


def worker(process: WorkerProcess, silent: float = 0.0, idle: float = 0.0) -> Worker:
    return Worker(process, silent, idle, Sign(0.0, True), False)


CASES: dict[str, tuple[dict[int, Worker], dict[WorkerProcess, str], bool, list[WorkerProcess]]] = {
    "one is silent and idle": (
        {0: worker(FIRST), 1: worker(SECOND, silent=101, idle=101)},
        {SECOND: "idle"},
        False,
        [SECOND],
    ),
    "one is silent, but computes": ({1: worker(SECOND, silent=900, idle=900)}, {SECOND: "busy"}, False, []),
    "one is silent, and gone already": ({1: worker(SECOND, silent=900, idle=900)}, {SECOND: "gone"}, False, []),
    "the node of one is lost": ({1: worker(SECOND, silent=900, idle=900)}, {}, False, []),
    "not long enough": ({1: worker(SECOND, silent=99, idle=99)}, {SECOND: "idle"}, False, []),
    "all wait for each other": (
        {0: worker(FIRST, idle=101), 1: worker(SECOND, idle=500)},
        {FIRST: "idle", SECOND: "idle"},
        False,
        [FIRST, SECOND],
    ),
    "all wait for an actor": (
        {0: worker(FIRST, idle=101), 1: worker(SECOND, idle=500)},
        {FIRST: "idle", SECOND: "idle"},
        True,
        [],
    ),
    "one waits for the other": (
        {0: worker(FIRST, idle=3), 1: worker(SECOND, idle=500)},
        {FIRST: "busy", SECOND: "idle"},
        False,
        [],
    ),
    "all wait for a file server": (
        {0: worker(FIRST, idle=101), 1: worker(SECOND, idle=500)},
        {FIRST: "busy", SECOND: "idle"},
        False,
        [],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_only_what_hangs_is_killed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers, states, actors, killed = CASES[name]
    told = Told(monkeypatch, tmp_path, states, actors)
    told.supervisor._end_hung(workers)
    assert told.killed == killed
    noted = [rank for rank in workers if take_hung(tmp_path, rank) is not None]
    assert noted == [rank for rank, each in workers.items() if each.process in killed]


def test_the_failure_of_a_worker_that_hung_says_so(tmp_path: Path) -> None:
    import ray.exceptions

    note_hung(tmp_path, 1, "hung: it has shown no sign of life for 120 s (cluster.hung_after)")
    notes = FailureNotes(tmp_path, max_failures=2)
    notes.after_exception(None, {1: ray.exceptions.ActorDiedError()})
    notes.after_exception(None, {1: ray.exceptions.ActorDiedError()})
    first, second = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert "hung: it has shown no sign of life for 120 s (cluster.hung_after)" in first
    assert "its process died" in second


def test_a_group_that_cannot_start_again_is_reported_each_minute_until_it_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(monkeypatch, tmp_path, {}, actors=False)
    sentence = "waiting for nodes: 2 workers need 2 CPU (there are 1)"
    monkeypatch.setattr(run_watch, "describe_shortage", lambda config: sentence)
    clock = [1000.0]
    monkeypatch.setattr(run_watch.time, "monotonic", lambda: clock[0])
    told.supervisor._report_wait(True)
    for seconds in (30, 61, 90, 122, 183):
        clock[0] = 1000.0 + seconds
        told.supervisor._report_wait(False)
    assert told.said == [sentence] * 3
    assert told.errors == []
    clock[0] = 1000.0 + 244
    told.supervisor._report_wait(False)
    (error,) = told.errors
    assert isinstance(error, ClusterError)
    assert str(error) == f"gave up after 200 s (cluster.wait_seconds) of {sentence}"


def test_workers_that_have_left_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, waits = Told(monkeypatch, tmp_path, {}, actors=False), []
    monkeypatch.setattr(Supervisor, "_workers", lambda self: {0: replace(worker(FIRST), left=True)})
    monkeypatch.setattr(Supervisor, "_report_wait", lambda self, there: waits.append(there))
    monkeypatch.setattr(ray, "kill", lambda watch: None)
    with Supervisor(RunConfig.model_validate({"cluster": {"hung_after": 0.04}}), tmp_path, told.said.append, print):
        while not waits:
            time.sleep(0.01)
    assert waits[0] is False


def test_this_process_is_not_taken_for_hung() -> None:
    own = WorkerProcess("node", os.getpid(), seconds_from_boot(os.getpid()))
    assert cast(Any, node_processes.examine)._function(own) in ("busy", "idle")


def test_a_watch_that_does_not_answer_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch, tmp_path, {}, actors=False)
    looks: list[int] = []

    def no_answer(self: Supervisor) -> dict[int, Worker]:
        looks.append(len(looks))
        raise ray.exceptions.GetTimeoutError

    monkeypatch.setattr(Supervisor, "_workers", no_answer)
    monkeypatch.setattr(ray, "kill", lambda watch: None)
    with Supervisor(RunConfig.model_validate({"cluster": {"hung_after": 0.04}}), tmp_path, told.said.append, print):
        while len(looks) < 3:
            time.sleep(0.01)
    assert len(told.said) == 1
    assert "does not answer" in told.said[0]
