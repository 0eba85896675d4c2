"""Faults of the soak: what each does to a run, what undoes it, and when the run is whole again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil

from benchmarks import soak_requests
from benchmarks.common import BenchmarkError
from benchmarks.soak_cluster import TestCluster, fill_object_store
from benchmarks.soak_watch import ACTOR, WORKER, titled

CLAIM_SECONDS = 120.0
SLOW_SECONDS, RUN_SECONDS, STOP_SECONDS = 30.0, 0.1, 0.4
HOLD_SECONDS = 20.0


class Victim(Protocol):
    """Run on a test cluster.

    Attributes:
        cluster: its cluster.
        driver: process id of its driver.
        store: folder of its graph.
        requests: folder of the files that `soak_requests` looks for.
        rng: generator of what is drawn.
    """

    cluster: TestCluster
    store: Path
    requests: Path
    rng: np.random.Generator

    @property
    def driver(self) -> int: ...


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        inject: begins it; returns the function that ends it, or None if nothing is to be ended.
        seconds: after which it is ended, but not before the driver has ended if that is to end.
        ends_driver: whether the driver ends, and the run is to be resumed.
        replaces: title of the processes of which one at least ends, ``WORKER`` or ``ACTOR``; empty if none need end.
    """

    inject: Callable[[Victim], Callable[[], None] | None]
    seconds: float = 0.0
    ends_driver: bool = False
    replaces: str = ""


def _signal_one(title: str, number: signal.Signals) -> Callable[[Victim], None]:
    def inject(victim: Victim) -> None:
        processes = titled(title)
        processes[int(victim.rng.integers(len(processes)))].send_signal(number)

    return inject


def _kill_driver(victim: Victim) -> None:
    os.kill(victim.driver, signal.SIGKILL)


def _kill_actor_in(request: str) -> Callable[[Victim], None]:
    def inject(victim: Victim) -> None:
        file = victim.requests / request
        file.touch()
        deadline = time.monotonic() + CLAIM_SECONDS
        while file.exists():
            if time.monotonic() > deadline:
                raise BenchmarkError(f"no actor has died by {request} in {CLAIM_SECONDS:g} s")
            time.sleep(0.01)

    return inject


def _raise_in_draws(victim: Victim) -> Callable[[], None]:
    file = victim.requests / soak_requests.RAISE
    file.touch()
    return file.unlink


def _kill_node(victim: Victim) -> Callable[[], None]:
    victim.cluster.second_node()[0].kill()
    return victim.cluster.replace_second_node


def _kill_head(victim: Victim) -> None:
    for process in victim.cluster.head():
        process.kill()


def _fill_object_store(victim: Victim) -> Callable[[], None]:
    process: BaseProcess = get_context("spawn").Process(
        target=fill_object_store, args=(victim.cluster.address, HOLD_SECONDS), name="soak-pressure"
    )
    process.start()
    return lambda: process.join()


def _slow_node(victim: Victim) -> Callable[[], None]:
    processes, over = victim.cluster.second_node(), threading.Event()

    def slow() -> None:
        while not over.is_set():
            _send(processes, signal.SIGSTOP)
            over.wait(STOP_SECONDS)
            _send(processes, signal.SIGCONT)
            over.wait(RUN_SECONDS)

    thread = threading.Thread(target=slow, daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join()

    return end


def _send(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _hide_store(victim: Victim) -> Callable[[], None]:
    """A worker dies while the store is away: the next group cannot read it."""
    hidden = victim.store.with_name(f"{victim.store.name}.hidden")
    victim.store.rename(hidden)
    _signal_one(WORKER, signal.SIGKILL)(victim)

    def end() -> None:
        hidden.rename(victim.store)

    return end


FAULTS = {
    "worker killed": Fault(_signal_one(WORKER, signal.SIGKILL), replaces=WORKER),
    "actor killed in a draw": Fault(_kill_actor_in(soak_requests.DIE_IN_DRAW), replaces=ACTOR),
    "actor killed in a publication": Fault(_kill_actor_in(soak_requests.DIE_IN_PUBLICATION), replaces=ACTOR),
    "driver killed": Fault(_kill_driver, ends_driver=True),
    "node killed, another added after 10 s": Fault(_kill_node, seconds=10, replaces=WORKER),
    "head killed, cluster started again": Fault(_kill_head, ends_driver=True),
    "worker stopped": Fault(_signal_one(WORKER, signal.SIGSTOP), replaces=WORKER),
    "actor stopped": Fault(_signal_one(ACTOR, signal.SIGSTOP), replaces=ACTOR),
    "source raises for 10 s": Fault(_raise_in_draws, seconds=10),
    "object store full, for 20 s": Fault(_fill_object_store, seconds=HOLD_SECONDS),
    "node at a fifth of its speed, for 30 s": Fault(_slow_node, seconds=SLOW_SECONDS),
    "store gone until the driver ends, worker killed": Fault(_hide_store, seconds=HOLD_SECONDS, ends_driver=True),
}


def drawn(rng: np.random.Generator, names: Sequence[str]) -> Iterator[str]:
    """Draw names without end; none comes again before all have come."""
    while True:
        yield from (names[place] for place in rng.permutation(len(names)))
