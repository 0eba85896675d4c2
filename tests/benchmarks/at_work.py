"""What ranks of a benchmark do in a test, in a module that takes little to import."""

from __future__ import annotations

import os

import torch

from distkg.sharding.ranks import Ranks


def describe(ranks: Ranks, hungry: int) -> tuple[int, int, set[int], int, str]:
    if ranks.rank == hungry:
        torch.ones(50 << 20)  # 210 MB, written to
    cores = os.sched_getaffinity(0)
    return ranks.rank, ranks.size, cores, torch.get_num_threads(), os.environ["OMP_WAIT_POLICY"]


def fail_on_last(ranks: Ranks) -> None:
    if ranks.rank == ranks.size - 1:
        raise ValueError("the last rank cannot")
    ranks.barrier()
