"""Run a function on several gloo ranks of this machine."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distkg.sharding.ranks import Ranks


def run_ranks(size: int, function: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
    """``function(ranks, *args)`` on ``size`` processes; their results in rank order.

    The function must be importable (defined at the top of a module). Its arguments and result are pickled. A
    rank that raises fails the call with its traceback; one that never joins a collective, after ``timeout``
    seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_on_rank, (size, folder, timeout, function, args), nprocs=size)
        return [pickle.loads(_result_of(rank, folder).read_bytes()) for rank in range(size)]


def _result_of(rank: int, folder: str) -> Path:
    return Path(folder) / f"result-{rank}.pickle"


def _on_rank(
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
