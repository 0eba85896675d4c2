"""Supervision of a run: heartbeats of the workers, requests to stop, and nodes that are taken away.

An actor that does nothing else keeps both, so that neither waits for a training step. A worker calls it from a thread
of its own, once a second, and receives a stop request within milliseconds. The driver inspects the heartbeats:

- A worker without a heartbeat for ``cluster.hung_after`` seconds, and whose process has not used its processor in the
  meantime, hangs (stopped by SIGSTOP, or blocked in the kernel). Its process is killed from its node, because a stopped
  process does not receive ``ray.kill``. A worker that has used its processor is alive, however long it computes.
- Workers with heartbeats, but none of which has used its processor for that time, nor any other process of the job,
  wait for each other: a deadlock. All of them are killed.

Either counts as a failure, and the run continues from its newest checkpoint. A worker in an endless loop cannot be
detected from outside.

A node that Ray drains, such as a spot node that its provider takes back, still works until its deadline. If it holds
workers, the whole group saves a checkpoint and starts again, for which Ray uses other nodes. This is no failure.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distkg.cluster.session.address import ClusterError
from distkg.cluster.session.shortage import describe_shortage
from distkg.cluster.session.waiting import AGAIN_SECONDS
from distkg.cluster.watch import run_folder
from distkg.cluster.watch.draining_nodes import describe_leaving, draining_nodes
from distkg.cluster.watch.heartbeats import BEAT_SECONDS, RunWatch, Sign, Worker, WorkerProcess, watch_name
from distkg.cluster.watch.node_processes import ANSWER_SECONDS, actors_at_work, examined, kill, on_node
from distkg.cluster.watch.process_start import seconds_from_boot
from distkg.config import RunConfig
from distkg.data.storage.working_copy import shown
from distkg.training.stopping import STOP_SECONDS, StopRequest

DRAIN_SECONDS = 1.0  # between looks for nodes that are taken away


@contextmanager
def signs_of_life(run: str, rank: int) -> Iterator[StopRequest]:
    """Send heartbeats to the run's watch while a worker trains; the yielded request is set when the run is to stop."""
    request, over = StopRequest(), threading.Event()
    watch = ray.get_actor(watch_name(run))
    process = WorkerProcess(ray.get_runtime_context().get_node_id(), os.getpid(), seconds_from_boot(os.getpid()))

    def speak() -> None:
        while not over.is_set():
            sign = Sign(time.process_time(), request.unsaved, request.requested)
            try:
                order = ray.get(watch.sign.remote(rank, process, sign), timeout=ANSWER_SECONDS)
                request.leaving = "" if order.stop else order.leaving
                request.requested |= order.stop or bool(order.leaving)
            except ray.exceptions.RayError:
                over.wait(BEAT_SECONDS)
            if request.requested:
                over.wait(BEAT_SECONDS / 4)  # the watch answers at once from now on

    threading.Thread(target=speak, name="signs-of-life", daemon=True).start()
    try:
        yield request
    finally:
        over.set()
        with suppress(ray.exceptions.RayError):
            ray.get(watch.leave.remote(rank, process), timeout=ANSWER_SECONDS)


class Supervisor:
    """Driver side of the supervision: starts the watch of a run, kills workers that hang, and requests a stop."""

    def __init__(
        self, config: RunConfig, run: Path, say: Callable[[str], None], give_up: Callable[[Exception], None]
    ) -> None:
        """Start the watch; ``say`` prints a sentence, ``give_up`` ends the run with an error."""
        self._config, self._run, self._say, self._give_up = config, run, say, give_up
        self._hung_after = config.cluster.hung_after
        self._watch = _start_watch(watch_name(shown(run)))
        self._over, self._unwatched = threading.Event(), False
        self._without_workers = self._said = time.monotonic()
        looks = self._look_after_workers, self._look_after_nodes
        self._threads = [threading.Thread(target=look, name="supervisor", daemon=True) for look in looks]

    def __enter__(self) -> Supervisor:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        with suppress(ray.exceptions.RayError):
            ray.kill(self._watch)

    def stop(self) -> None:
        """Request a checkpoint from the workers; return when it is on disk, or after a minute."""
        stop_run(self._watch, STOP_SECONDS)

    def _workers(self) -> dict[int, Worker]:
        workers: dict[int, Worker] = ray.get(self._watch.workers.remote(), timeout=ANSWER_SECONDS)
        return workers

    def _workers_in_training(self) -> dict[int, Worker]:
        return {rank: worker for rank, worker in self._workers().items() if not worker.left}

    def _look_after_workers(self) -> None:
        while not self._over.wait(min(5.0, self._hung_after / 4)):
            with suppress(ray.exceptions.RayError):  # a node may be going down: checked again in the next round
                try:
                    workers = self._workers_in_training()
                except ray.exceptions.GetTimeoutError:
                    self._report_silence()
                    continue
                self._end_hung(workers)
                self._report_wait(bool(workers))

    def _look_after_nodes(self) -> None:
        while not self._over.wait(DRAIN_SECONDS):
            with suppress(ray.exceptions.RayError):
                draining = draining_nodes()
                if draining:
                    self._leave_nodes(draining)

    def _leave_nodes(self, draining: Mapping[str, float | None]) -> None:
        """Have all workers save and start again, if some of them are on draining nodes."""
        workers = self._workers_in_training()
        sentence = describe_leaving(workers, draining)
        if sentence:
            self._watch.leave_nodes.remote([worker.process for worker in workers.values()], sentence)

    def _report_silence(self) -> None:
        """Report once that the watch does not answer; the workers continue."""
        if not self._unwatched:
            self._unwatched = True
            self._say(
                "the process that watches over this run's workers does not answer: the machine is overloaded. Until it "
                "does, workers that hang are not noticed. Start fewer runs at once, or add nodes"
            )

    def _report_wait(self, there_are_workers: bool) -> None:
        """Report every minute the resources that a worker group lacks to restart; give up after
        ``cluster.wait_seconds``."""
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
                self._kill(workers, f"has computed nothing for {least:.0f} s, like all other workers: a deadlock")

    def _kill(self, workers: Mapping[int, Worker], reason: str) -> None:
        for rank, worker in workers.items():
            run_folder.note_hung(self._run, rank, f"hung: it {reason} (cluster.hung_after)")
            on_node(worker.process.node, kill).remote(worker.process)
            self._watch.forget.remote(rank, worker.process)


def _start_watch(name: str) -> Any:
    """Start the watch of a run on this node; it starts while the workers do."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            # Without task events: the head would keep those of every heartbeat.
            how = {"num_cpus": 0, "max_restarts": -1, "enable_task_events": False}
            return ray.remote(RunWatch).options(name=name, scheduling_strategy=here, **how).remote()
        except ValueError:  # the watch of an earlier launch of this run is still ending
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def stop_run(watch: Any, seconds: float) -> None:
    """Stop the workers of a run; return when nothing is unsaved, or after ``seconds``."""
    with suppress(ray.exceptions.RayError):
        ray.get(watch.stop.remote(), timeout=seconds)
        ray.get(watch.nothing_unsaved.remote(), timeout=seconds)


def stop_runs(runs: Sequence[str]) -> None:
    """Stop several runs of this job at once; return when nothing of them is unsaved, or after a minute."""
    stopping = []
    for run in runs:
        with suppress(ValueError, ray.exceptions.RayError):  # it has no workers now
            watch = ray.get_actor(watch_name(run))
            stopping += [watch.stop.remote(), watch.nothing_unsaved.remote()]
    if stopping:
        ray.wait(stopping, num_returns=len(stopping), timeout=STOP_SECONDS)
