"""Watching over a run: the workers' signs of life on the way in, a request to stop on the way out.

An actor that does nothing else keeps both, so that neither waits for a training step. A worker speaks to it from a
thread of its own, once a second, and hears of a stop within milliseconds. The driver looks at what the workers said:

- A worker that says nothing for ``cluster.hung_after`` seconds, and whose process has not used its processor in the
  meantime, hangs (stopped by SIGSTOP, or caught in the kernel). Its process is killed from its node, for a stopped one
  does not hear ``ray.kill``. One that has used its processor is alive, however long it computes.
- Workers that speak, but none of which has used its processor for that time, nor any other process of the job, wait for
  each other: a deadlock. All of them are killed.

Either counts as a failure, and the run goes on from its newest checkpoint. What cannot be seen from outside is a worker
that spins in a loop without end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distkg.cluster import run_folder
from distkg.cluster.session import ClusterError, describe_shortage
from distkg.cluster.waiting import AGAIN_SECONDS
from distkg.config import RunConfig
from distkg.training.stopping import StopRequest

BEAT_SECONDS = 1.0
BUSY_SHARE = 0.1
"""Share of one processor above which a process is at work. Ray Train's questions and the signs take less."""
SAMPLE_SECONDS, SAMPLES = 2.0, 10
ANSWER_SECONDS = 20.0
START_SECONDS = 300.0
"""How long a process of the cluster may take to start: on a busy machine its imports alone take half a minute."""
STOP_SECONDS = 60.0
"""How long a checkpoint may take when a run is stopped, where nobody kills the driver before."""

_AT_WORK_FOR_WORKERS = ("ray::NegativeActor", "ray::_make")  # what workers may wait for


class Process(NamedTuple):
    """A worker's process: its node, its number there, and when it began (Unix time), as numbers are used again."""

    node: str
    pid: int
    born: float


class Sign(NamedTuple):
    """What a worker says once a second: the processor time of its process (s), and whether it has unsaved progress."""

    cpu: float
    unsaved: bool


@dataclass
class Worker:
    """What the watch knows of a worker.

    Attributes:
        silent: seconds since its last sign.
        idle: seconds since its process used its processor.
        sign: the last one.
        left: it has left the training function.
    """

    process: Process
    silent: float
    idle: float
    sign: Sign
    left: bool


class RunWatch:
    """Keeps the signs of a run's workers and its request to stop; becomes a Ray actor."""

    def __init__(self) -> None:
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._workers: dict[int, tuple[Process, float, float, Sign, bool]] = {}

    async def sign(self, rank: int, process: Process, sign: Sign) -> bool:
        """Take a sign; return whether the run is to stop, a second later or as soon as it is."""
        now = time.monotonic()
        known = self._workers.get(rank)
        active, left = now, False
        if known is not None and known[0] == process:
            _, heard, active, before, left = known
            if sign.cpu - before.cpu > BUSY_SHARE * (now - heard):
                active = now
        self._workers[rank] = process, now, active, sign, left
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), BEAT_SECONDS)
        return self._stop.is_set()

    async def leave(self, rank: int, process: Process) -> None:
        """A worker has left the training function."""
        known = self._workers.get(rank)
        if known is not None and known[0] == process:
            self._workers[rank] = *known[:4], True
            self._changed.set()

    async def forget(self, rank: int, process: Process) -> None:
        """A worker's process is gone."""
        if rank in self._workers and self._workers[rank][0] == process:
            del self._workers[rank]

    async def stop(self) -> None:
        """Have every worker told to stop."""
        self._stop.set()

    async def workers(self) -> dict[int, Worker]:
        now = time.monotonic()
        return {
            rank: Worker(process, now - heard, now - active, sign, left)
            for rank, (process, heard, active, sign, left) in self._workers.items()
        }

    async def nothing_unsaved(self) -> bool:
        """Wait until no worker has progress that a checkpoint lacks."""
        while any(sign.unsaved and not left for _, _, _, sign, left in self._workers.values()):
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), BEAT_SECONDS)
        return True


def watch_name(run: str) -> str:
    """Name by which processes of the job find the watch of a run."""
    return f"watch of {run}"


@contextmanager
def signs_of_life(run: str, rank: int) -> Iterator[StopRequest]:
    """Speak to the run's watch while a worker trains; the request is set when the run is to stop."""
    request, over = StopRequest(), threading.Event()
    watch = ray.get_actor(watch_name(run))
    process = Process(ray.get_runtime_context().get_node_id(), os.getpid(), psutil.Process().create_time())

    def speak() -> None:
        while not over.is_set():
            sign = Sign(time.process_time(), request.unsaved)
            try:
                request.asked |= ray.get(watch.sign.remote(rank, process, sign), timeout=ANSWER_SECONDS)
            except ray.exceptions.RayError:
                over.wait(BEAT_SECONDS)
            if request.asked:
                over.wait(BEAT_SECONDS / 4)  # the answer comes at once from now on

    threading.Thread(target=speak, name="signs-of-life", daemon=True).start()
    try:
        yield request
    finally:
        over.set()
        with suppress(ray.exceptions.RayError):
            ray.get(watch.leave.remote(rank, process), timeout=ANSWER_SECONDS)


class Supervisor:
    """The driver's side: starts the watch of a run, ends workers that hang, and asks for a stop."""

    def __init__(
        self, config: RunConfig, run: Path, say: Callable[[str], None], give_up: Callable[[Exception], None]
    ) -> None:
        """``say`` prints a sentence; ``give_up`` ends the run with an error."""
        self._config, self._run, self._say, self._give_up = config, run, say, give_up
        self._hung_after = config.cluster.hung_after
        self._watch = _start_watch(watch_name(str(run)))
        self._over = threading.Event()
        self._without_workers = self._said = time.monotonic()
        self._thread = threading.Thread(target=self._look_after_workers, name="supervisor", daemon=True)

    def __enter__(self) -> Supervisor:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        with suppress(ray.exceptions.RayError):
            ray.kill(self._watch)

    def stop(self) -> None:
        """Ask the workers for a checkpoint; return when it is on the disk, or after a minute."""
        stop_run(self._watch, STOP_SECONDS)

    def _workers(self) -> dict[int, Worker]:
        workers: dict[int, Worker] = ray.get(self._watch.workers.remote(), timeout=ANSWER_SECONDS)
        return workers

    def _look_after_workers(self) -> None:
        while not self._over.wait(min(5.0, self._hung_after / 4)):
            with suppress(ray.exceptions.RayError):  # a node on its way out: seen again at the next look
                workers = self._workers()
                self._end_hung({rank: worker for rank, worker in workers.items() if not worker.left})
                self._report_wait(bool(workers))

    def _report_wait(self, there_are_workers: bool) -> None:
        """Say every minute what a group that cannot be started again waits for; give up where it has waited enough."""
        now = time.monotonic()
        if there_are_workers:
            self._without_workers = self._said = now
            return
        shortage = describe_shortage(self._config) if now - self._said > AGAIN_SECONDS else None
        if shortage is None:
            return
        self._said, limit = now, self._config.cluster.wait_seconds
        if limit is not None and now - self._without_workers > limit:
            self._give_up(ClusterError(f"gave up after {limit:g} s (cluster.wait_seconds) of {shortage}"))
        self._say(shortage)

    def _end_hung(self, workers: Mapping[int, Worker]) -> None:
        silent = {rank: worker for rank, worker in workers.items() if worker.silent > self._hung_after}
        if silent:
            states = examined([worker.process for worker in silent.values()])
            for rank, worker in silent.items():
                if states.get(worker.process) == "gone":
                    self._watch.forget.remote(rank, worker.process)
                elif states.get(worker.process) == "idle":
                    self._kill({rank: worker}, f"has shown no sign of life for {worker.silent:.0f} s")
        elif workers and all(worker.idle > self._hung_after for worker in workers.values()):
            states = examined([worker.process for worker in workers.values()])
            if all(state == "idle" for state in states.values()) and not actors_at_work():
                least = min(worker.idle for worker in workers.values())
                self._kill(workers, f"has computed nothing for {least:.0f} s, and nor has any other: a deadlock")

    def _kill(self, workers: Mapping[int, Worker], reason: str) -> None:
        for rank, worker in workers.items():
            run_folder.note_hung(self._run, rank, f"hung: it {reason} (cluster.hung_after)")
            on_node(worker.process.node, kill).remote(worker.process)
            self._watch.forget.remote(rank, worker.process)


def _start_watch(name: str) -> Any:
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            options = ray.remote(RunWatch).options(name=name, num_cpus=0, max_restarts=-1, scheduling_strategy=node)
            watch = options.remote()
            ray.get(watch.workers.remote(), timeout=START_SECONDS)
            return watch
        except ray.exceptions.GetTimeoutError:
            raise ClusterError(
                f"the cluster has not started the process that watches over this run's workers in {START_SECONDS:g} s: "
                "it is overloaded. Start fewer runs at once, or add nodes"
            ) from None
        except ValueError:  # an earlier launch of this run is still on its way out
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def stop_run(watch: Any, seconds: float) -> None:
    """Have the workers of a run stop; return when nothing is unsaved, or after so many seconds."""
    with suppress(ray.exceptions.RayError):
        ray.get(watch.stop.remote(), timeout=seconds)
        ray.get(watch.nothing_unsaved.remote(), timeout=seconds)


def stop_runs(runs: Sequence[str]) -> None:
    """Have several runs of this job stop, all at once; return when nothing of them is unsaved, or after a minute."""
    stopping = []
    for run in runs:
        with suppress(ValueError, ray.exceptions.RayError):  # it has no workers now
            watch = ray.get_actor(watch_name(run))
            stopping += [watch.stop.remote(), watch.nothing_unsaved.remote()]
    if stopping:
        ray.wait(stopping, num_returns=len(stopping), timeout=STOP_SECONDS)


def examined(processes: Sequence[Process]) -> dict[Process, str]:
    """Whether processes, each looked at from its node, are ``busy``, ``idle`` or ``gone``; lost nodes say nothing."""
    looks = [on_node(process.node, examine).remote(process) for process in processes]
    found = {}
    for process, look in zip(processes, looks, strict=True):
        with suppress(ray.exceptions.RayError):
            found[process] = ray.get(look, timeout=SAMPLE_SECONDS + ANSWER_SECONDS)
    return found


def actors_at_work() -> bool:
    """Whether actors or tasks that workers may wait for are computing, on any node."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    looks = [on_node(node, processes_at_work).remote(_AT_WORK_FOR_WORKERS) for node in nodes]
    return any(ray.get(looks, timeout=SAMPLE_SECONDS + ANSWER_SECONDS))


def on_node(node: str, function: Any) -> Any:
    """A remote function that runs on a node, whatever is reserved there."""
    return function.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))


@ray.remote(num_cpus=0, max_retries=0)
def examine(process: Process) -> str:
    """State of a process of this node, seen for two seconds: ``busy``, ``idle`` or ``gone``."""
    try:
        seen = psutil.Process(process.pid)
        return "gone" if seen.create_time() != process.born else "busy" if _is_busy([seen]) else "idle"
    except psutil.NoSuchProcess:
        return "gone"


@ray.remote(num_cpus=0, max_retries=0)
def processes_at_work(titles: tuple[str, ...]) -> bool:
    """Whether a process of this node whose title begins with one of these is computing."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(titles):
                found.append(process)
    return bool(found) and _is_busy(found)


@ray.remote(num_cpus=0, max_retries=0)
def kill(process: Process) -> None:
    """End a process of this node; ``ray.kill`` asks the process itself, which one that is stopped does not hear."""
    with suppress(psutil.NoSuchProcess):
        if psutil.Process(process.pid).create_time() == process.born:
            os.kill(process.pid, signal.SIGKILL)


def _is_busy(processes: Sequence[psutil.Process]) -> bool:
    """Whether any of them computes, waits for its turn on a crowded machine, or for a disk or a file server."""
    before, wanting = _processor_time(processes), 0
    for _ in range(SAMPLES):
        time.sleep(SAMPLE_SECONDS / SAMPLES)
        wanting += any(_wants_to_run(process) for process in processes)
    return wanting > SAMPLES / 2 or _processor_time(processes) - before > BUSY_SHARE * SAMPLE_SECONDS


def _wants_to_run(process: psutil.Process) -> bool:
    """Whether a thread of a process runs, could run, or waits for a disk; where threads show no state, the process."""
    states = []
    with suppress(OSError):
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            with suppress(OSError, IndexError):
                states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
    if states:
        return bool({"R", "D"} & set(states))
    with suppress(psutil.Error):
        return process.status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
    return False


def _processor_time(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):
            total += sum(process.cpu_times()[:2])
    return total
