"""Union of lists of integers, and the place of each element in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu

_MOST = 16  # lists up to which looking at the head of each is faster than sorting


def merge_sorted(values: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Merge lists that follow each other in ``values``, each sorted and without repetitions.

    Args:
        values: int64 [k], the lists.
        counts: number of elements of each list.

    Returns:
        Sorted unique values int64 [u], and the place of each of ``values`` among them, int64 [k]: the same as
        ``torch.unique(values, return_inverse=True)``, which sorts. On a device, the values of `union_of_fixed_size`.
    """
    if not on_cpu(values):
        return union_of_fixed_size(values, len(values))
    if len(counts) > _MOST:
        return torch.unique(values, return_inverse=True)
    union, place = torch.empty_like(values), torch.empty_like(values)
    starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    length = _merge(values.numpy(), starts, union.numpy(), place.numpy())
    return union[:length], place


def union_of_fixed_size(values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Sort unique values, padded to a size by repetitions of the largest: a device computes it without a wait.

    Args:
        values: int64 [k].
        size: at least the number of distinct values.

    Returns:
        int64 [size], and the place of each of ``values`` among them, int64 [k].
    """
    ordered, order = values.sort()
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=fresh[1:])
    rank = fresh.cumsum(0) - 1
    places = torch.empty_like(values).scatter_(0, order, rank)
    return ordered[-1:].repeat(size).scatter_(0, rank, ordered), places


@kernel
def _merge(values: np.ndarray, starts: np.ndarray, union: np.ndarray, place: np.ndarray) -> int:
    at = starts[:-1].copy()
    length = 0
    while True:
        smallest, found = np.int64(0), False
        for k in range(at.shape[0]):
            if at[k] < starts[k + 1] and (not found or values[at[k]] < smallest):
                smallest, found = values[at[k]], True
        if not found:
            return length
        for k in range(at.shape[0]):
            if at[k] < starts[k + 1] and values[at[k]] == smallest:
                place[at[k]] = length
                at[k] += 1
        union[length] = smallest
        length += 1
