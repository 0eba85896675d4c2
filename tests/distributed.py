"""Run a function on several gloo ranks of this machine."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distkg.sharding.ranks import Ranks

for _name in ("distributed", "tests.distributed"):  # tests import it by either; its processes are there once
    sys.modules.setdefault(_name, sys.modules[__name__])

_FIRST_SEED = torch.initial_seed()
"""Of torch's generator in a new process."""


def run_ranks(
    size: int, function: Callable[..., Any], *args: Any, timeout: float = 120, fresh: bool = False
) -> list[Any]:
    """Return ``function(ranks, *args)`` of ``size`` processes, in rank order.

    The processes are spawned once for each size and serve all later calls, as to import torch takes longer than most
    tests. The function must be importable (defined at the top of a module). Its arguments and result are pickled.

    Args:
        timeout: seconds after which a rank that never joins a collective fails the call.
        fresh: spawn processes for this call alone: for functions that die, change modules for good, limit what
            their process may do, or measure its memory.

    Raises:
        Exception: what a rank raised, with its traceback; ``ProcessExitedException`` for fresh ranks that died.
    """
    with tempfile.TemporaryDirectory() as folder:
        if fresh:
            mp.spawn(_on_fresh_rank, (size, folder, timeout, function, args), nprocs=size)
        else:
            _on_kept_ranks(size, folder, timeout, function, args)
        return [pickle.loads(_result_of(rank, folder).read_bytes()) for rank in range(size)]


def _on_kept_ranks(size: int, folder: str, timeout: float, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    process = (sys.path, dict(os.environ), os.getcwd())
    call = pickle.dumps((function, args))
    # Every process takes one of the calls, as each call waits for all others.
    calls = [_executor(size).submit(_on_kept_rank, rank, size, folder, timeout, process, call) for rank in range(size)]
    wait(calls)
    failures = [failure for each in calls if (failure := each.exception()) is not None]
    if failures:
        _kept.pop(size).shutdown(wait=False, cancel_futures=True)
        # gloo's RuntimeError says only that a peer is gone; the peer's own error has the cause.
        raise min(failures, key=lambda failure: type(failure) is RuntimeError)


def _executor(size: int) -> ProcessPoolExecutor:
    if size not in _kept:
        _kept[size] = ProcessPoolExecutor(size, mp_context=get_context("spawn"))
    return _kept[size]


_kept: dict[int, ProcessPoolExecutor] = {}
"""Processes by how many they are."""


def end_kept_ranks() -> None:
    """End the processes that serve calls; later calls spawn others."""
    while _kept:
        _kept.popitem()[1].shutdown()


def _on_kept_rank(
    rank: int, size: int, folder: str, timeout: float, process: tuple[list[str], dict[str, str], str], call: bytes
) -> None:
    path, environment, working_folder = process
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(working_folder)
    torch.manual_seed(_FIRST_SEED)
    _on_fresh_rank(rank, size, folder, timeout, *pickle.loads(call))


def _on_fresh_rank(
    rank: int, size: int, folder: str, timeout: float, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "rendezvous"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    try:
        result = function(Ranks.from_process_group(torch.device("cpu")), *args)
    finally:
        dist.destroy_process_group()
    _result_of(rank, folder).write_bytes(pickle.dumps(result))


def _result_of(rank: int, folder: str) -> Path:
    return Path(folder) / f"result-{rank}.pickle"
