"""Heartbeats of a run's workers, kept by an actor, and orders to them.

Does not import torch, because the actor starts before the workers do, on the same cores.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

BEAT_SECONDS = 1.0
BUSY_SHARE = 0.1
"""Share of one processor above which a process counts as busy. Ray Train's polling and heartbeats take less."""


class WorkerProcess(NamedTuple):
    """Process of a worker: its node, its process id, and its start (s from the node's boot), because process ids are
    reused."""

    node: str
    pid: int
    born: float


class Sign(NamedTuple):
    """Heartbeat of a worker, sent once a second.

    Attributes:
        cpu: processor time of its process (s).
        unsaved: it has progress that no checkpoint holds.
        stopping: it has received an order to stop or to leave.
    """

    cpu: float
    unsaved: bool
    stopping: bool = False


class Order(NamedTuple):
    """Order to a worker.

    Attributes:
        stop: the run is to stop.
        leaving: beginning of a sentence about nodes that are taken away, which the worker's group is to leave; else
            empty.
    """

    stop: bool = False
    leaving: str = ""


@dataclass
class Worker:
    """State of a worker according to its heartbeats.

    Attributes:
        silent: seconds since its last heartbeat.
        idle: seconds since its process last used the processor.
        sign: its last heartbeat.
        left: it has left the training function.
    """

    process: WorkerProcess
    silent: float
    idle: float
    sign: Sign
    left: bool


class RunWatch:
    """Ray actor that keeps the heartbeats of a run's workers, and orders to them: to stop, or to leave nodes."""

    def __init__(self) -> None:
        self._stopped = False
        self._leaving: dict[WorkerProcess, str] = {}
        self._news = asyncio.Event()
        self._changed = asyncio.Event()
        self._workers: dict[int, tuple[WorkerProcess, float, float, Sign, bool]] = {}

    async def sign(self, rank: int, process: WorkerProcess, sign: Sign) -> Order:
        """Record a heartbeat; return the order to the worker, after a second or as soon as there is a new one."""
        now = time.monotonic()
        known = self._workers.get(rank)
        active, has_left = now, False
        if known is not None and known[0] == process:
            _, heard, active, before, has_left = known
            if sign.cpu - before.cpu > BUSY_SHARE * (now - heard):
                active = now
        self._workers[rank] = process, now, active, sign, has_left
        if sign.stopping:
            self._changed.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), BEAT_SECONDS)
        return Order(self._stopped, self._leaving.get(process, ""))

    async def leave(self, rank: int, process: WorkerProcess) -> None:
        """Record that a worker has left the training function."""
        known = self._workers.get(rank)
        if known is not None and known[0] == process:
            self._workers[rank] = *known[:4], True
            self._changed.set()

    async def forget(self, rank: int, process: WorkerProcess) -> None:
        """Remove a worker whose process is gone."""
        if rank in self._workers and self._workers[rank][0] == process:
            del self._workers[rank]

    async def stop(self) -> None:
        """Request that every worker stops."""
        self._stopped = True
        self._news.set()

    async def leave_nodes(self, workers: Sequence[WorkerProcess], sentence: str) -> None:
        """Order that a group of workers saves and starts again on other nodes; later groups do not receive it."""
        known = len(self._leaving)
        for process in workers:
            self._leaving.setdefault(process, sentence)
        if len(self._leaving) > known and not self._stopped:
            self._news.set()
            self._news.clear()  # only those that wait now are woken

    async def workers(self) -> dict[int, Worker]:
        now = time.monotonic()
        return {
            rank: Worker(process, now - heard, now - active, sign, has_left)
            for rank, (process, heard, active, sign, has_left) in self._workers.items()
        }

    async def nothing_unsaved(self) -> bool:
        """Wait until every worker has received the order to stop, and none has progress that a checkpoint lacks.

        A heartbeat from before the order says nothing: training may have begun since.
        """
        while any(
            not has_left and (sign.unsaved or not sign.stopping) for _, _, _, sign, has_left in self._workers.values()
        ):
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), BEAT_SECONDS)
        return True


def watch_name(run: str) -> str:
    """Return the name by which processes of the job find the watch of a run."""
    return f"watch of {run}"
