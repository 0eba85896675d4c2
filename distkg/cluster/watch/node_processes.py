"""Inspection and termination of a node's processes from that node: whether they compute, wait, or are gone.

Does not import torch, because these tasks run in processes of their own.
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

from distkg.cluster.watch.heartbeats import BUSY_SHARE, WorkerProcess
from distkg.cluster.watch.process_start import seconds_from_boot

SAMPLE_SECONDS, SAMPLES = 2.0, 10
ANSWER_SECONDS = 20.0

_AT_WORK_FOR_WORKERS = ("ray::NegativeActor", "ray::_make")  # processes that workers may wait for


def examined(processes: Sequence[WorkerProcess]) -> dict[WorkerProcess, str]:
    """Return the state of each process, inspected on its node: ``busy``, ``idle`` or ``gone``; processes of lost
    nodes are missing."""
    checks = [on_node(process.node, examine).remote(process) for process in processes]
    states = {}
    for process, check in zip(processes, checks, strict=True):
        with suppress(ray.exceptions.RayError):
            states[process] = ray.get(check, timeout=SAMPLE_SECONDS + ANSWER_SECONDS)
    return states


def actors_at_work() -> bool:
    """Return whether an actor or task that workers may wait for is computing, on any node."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    looks = [on_node(node, processes_at_work).remote(_AT_WORK_FOR_WORKERS) for node in nodes]
    return any(ray.get(looks, timeout=SAMPLE_SECONDS + ANSWER_SECONDS))


def on_node(node: str, function: Any) -> Any:
    """Return a remote function that runs on a node, regardless of its free resources."""
    return function.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))


@ray.remote(num_cpus=0, max_retries=0)
def examine(process: WorkerProcess) -> str:
    """Return the state of a process of this node, observed for two seconds: ``busy``, ``idle`` or ``gone``."""
    try:
        if seconds_from_boot(process.pid) != process.born:
            return "gone"
        return "busy" if _is_busy([psutil.Process(process.pid)]) else "idle"
    except psutil.NoSuchProcess:
        return "gone"


@ray.remote(num_cpus=0, max_retries=0)
def processes_at_work(titles: tuple[str, ...]) -> bool:
    """Return whether a process of this node whose title begins with one of ``titles`` is computing."""
    matching = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(titles):
                matching.append(process)
    return bool(matching) and _is_busy(matching)


@ray.remote(num_cpus=0, max_retries=0)
def kill(process: WorkerProcess) -> None:
    """Kill a process of this node; a process that is stopped does not receive ``ray.kill``."""
    with suppress(psutil.NoSuchProcess):
        if seconds_from_boot(process.pid) == process.born:
            os.kill(process.pid, signal.SIGKILL)


def _is_busy(processes: Sequence[psutil.Process]) -> bool:
    """Return whether one of the processes computes, waits for a core, or waits for a disk or a file server."""
    before, runnable = _processor_time(processes), 0
    for _ in range(SAMPLES):
        time.sleep(SAMPLE_SECONDS / SAMPLES)
        runnable += any(_wants_to_run(process) for process in processes)
    return runnable > SAMPLES / 2 or _processor_time(processes) - before > BUSY_SHARE * SAMPLE_SECONDS


def _wants_to_run(process: psutil.Process) -> bool:
    """Return whether a thread of a process runs, is runnable, or waits for a disk.

    On systems without states of threads, the state of the process is used.
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
