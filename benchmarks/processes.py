"""Fresh processes to measure in: workers that meet over gloo, one alone with all cores, or one on each core.

Every measurement of time or memory has processes of its own, so that neither memory nor library settings leak from one
to another.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist

from benchmarks.common import BenchmarkError
from benchmarks.peak_memory import peak_mb, proportional_mb
from distkg.process_memory import keep_freed_memory
from distkg.sharding.ranks import Ranks
from distkg.torch_variables import TORCH_VARIABLES

WORKERS = 2

T = TypeVar("T")


@dataclass(frozen=True)
class Finished(Generic[T]):
    """What a process returned, the most memory that it held (resident MB), and its part of the memory that all held at
    the end, where pages that several map count once in all (proportional MB)."""

    value: T
    peak_mb: float
    proportional_mb: float


def on_ranks(size: int, function: Callable[..., T], *args: Any, pinned: bool = False) -> list[Finished[T]]:
    """``function(ranks, *args)`` on ``size`` gloo workers of one thread each, in rank order.

    Workers have the environment that Ray Train workers of distkg get. The function must be importable.

    Args:
        size: number of workers.
        function: called on each.
        args: pickled.
        pinned: give rank w the w-th core that this process may use, and no other.

    Raises:
        BenchmarkError: fewer cores than pinned workers.
    """
    from distkg.cluster.session.worker_environment import worker_environment
    from distkg.config import ClusterConfig

    cores = sorted(os.sched_getaffinity(0))
    if pinned and len(cores) < size:
        raise BenchmarkError(f"{size} workers with a core each need {size} cores; this process may use {len(cores)}")
    with tempfile.TemporaryDirectory() as folder, _pool(size, worker_environment(ClusterConfig())) as pool:
        meeting = str(Path(folder) / "rendezvous")
        futures = [
            pool.submit(_on_rank, rank, size, meeting, cores[rank] if pinned else None, function, args)
            for rank in range(size)
        ]
        wait(futures)
        failures = [future.exception() for future in futures if future.exception()]
        # gloo's RuntimeError says only that a peer is gone; the peer's own error has the cause.
        for failure in sorted(failures, key=lambda error: type(error) is RuntimeError):
            raise failure  # type: ignore[misc]
        return [future.result() for future in futures]


def alone(function: Callable[..., T], *args: Any) -> Finished[T]:
    """``function(*args)`` in one process whose torch uses every core."""
    cores = len(os.sched_getaffinity(0))
    with _pool(1, {**TORCH_VARIABLES, "OMP_NUM_THREADS": str(cores)}) as pool:
        return pool.submit(_alone, cores, function, args).result()


def side_by_side(function: Callable[..., T], arguments: Sequence[Any]) -> Iterator[T]:
    """``function(argument)`` of each, in their order; as many at a time as there are cores, each in a process of
    its own with one thread.

    The function must be importable.
    """
    one_thread = {**TORCH_VARIABLES, "OMP_NUM_THREADS": "1"}
    with _pool(len(os.sched_getaffinity(0)), one_thread, max_tasks_per_child=1) as pool:
        yield from pool.map(function, arguments)


@contextmanager
def _pool(
    size: int, environment: dict[str, str], max_tasks_per_child: int | None = None
) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes that start with these variables: torch and OpenMP read them while they are imported."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        context = get_context("spawn")
        with ProcessPoolExecutor(size, mp_context=context, max_tasks_per_child=max_tasks_per_child) as pool:
            yield pool
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _on_rank(
    rank: int, size: int, meeting: str, core: int | None, function: Callable[..., T], args: tuple[Any, ...]
) -> Finished[T]:
    if core is not None:
        os.sched_setaffinity(0, {core})  # before gloo starts its threads, which inherit it
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", store=dist.FileStore(meeting, size), rank=rank, world_size=size)
    try:
        value = function(Ranks.from_process_group(torch.device("cpu")), *args)
        dist.barrier()  # all of them still hold what they share
        proportional = proportional_mb()
        dist.barrier()  # a worker that left early would break the connections that the others still make
    finally:
        dist.destroy_process_group()
    return Finished(value, peak_mb(), proportional)


def _alone(threads: int, function: Callable[..., T], args: tuple[Any, ...]) -> Finished[T]:
    torch.set_num_threads(threads)
    return Finished(function(*args), peak_mb(), proportional_mb())
