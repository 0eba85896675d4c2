"""Processes of a node, looked at and killed from there: whether they compute, wait, or are gone.

Imports nothing of torch, as these tasks run in processes of their own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distkg.cluster.watch.heartbeats import BUSY_SHARE, Process

SAMPLE_SECONDS, SAMPLES = 2.0, 10
ANSWER_SECONDS = 20.0

_AT_WORK_FOR_WORKERS = ("ray::NegativeActor", "ray::_make")  # what workers may wait for


def examined(processes: Sequence[Process]) -> dict[Process, str]:
    """Return the state of each process, seen from its node: ``busy``, ``idle`` or ``gone``; lost nodes say nothing."""
    looks = [on_node(process.node, examine).remote(process) for process in processes]
    found = {}
    for process, look in zip(processes, looks, strict=True):
        with suppress(ray.exceptions.RayError):
            found[process] = ray.get(look, timeout=SAMPLE_SECONDS + ANSWER_SECONDS)
    return found


def actors_at_work() -> bool:
    """Return True where an actor or task that workers may wait for is computing, on any node."""
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
    """Return True where a process of this node whose title begins with one of these is computing."""
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
    """Return True where one of them computes, waits for a core, or waits for a disk or a file server."""
    before, wanting = _processor_time(processes), 0
    for _ in range(SAMPLES):
        time.sleep(SAMPLE_SECONDS / SAMPLES)
        wanting += any(_wants_to_run(process) for process in processes)
    return wanting > SAMPLES / 2 or _processor_time(processes) - before > BUSY_SHARE * SAMPLE_SECONDS


def _wants_to_run(process: psutil.Process) -> bool:
    """Return True where a thread of a process runs, could run, or waits for a disk.

    Systems that show no state of threads are asked for that of the process.
    """
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
