"""Entries (query, row) of an index in the order of the rows.

With an index [B, K] of random rows, a loop over queries reads a row from memory for every entry. In the order of rows,
each row is read once. Queries are then read and written at random, but they are fewer and stay in the cache.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from distkg.kernels.jit import kernel
from distkg.kernels.threads import for_each_part

_FEWEST = 512  # entries of a part: with fewer, a thread costs more than it saves


class RowOrder:
    """Order of the entries of an index.

    Args:
        index: int64 [B, K], rows of queries 0 … B - 1.
        rows: number of rows.

    Attributes:
        starts: int64 [rows + 1], the entries of row u are starts[u] … starts[u + 1] - 1.
        queries: int32 [B·K], query of each entry.
        places: int32 [B·K], place of each entry in the flattened index.
    """

    def __init__(self, index: np.ndarray, rows: int) -> None:
        self.starts = np.zeros(rows + 1, np.int64)
        self.queries, self.places = np.empty(index.size, np.int32), np.empty(index.size, np.int32)
        _sort(index, self.starts, self.queries, self.places)

    def back(self, values: np.ndarray, out: np.ndarray) -> None:
        """Write the values of the entries, float32 [B·K], to out [B, K]."""
        flat = out.reshape(-1)
        for_each_part(len(values), lambda low, high: _scatter(values[low:high], self.places[low:high], flat), _FEWEST)

    def sorted(self, values: np.ndarray) -> np.ndarray:
        """Return values [B, K] in the order of the entries: [B·K]."""
        ordered = np.empty(values.size, np.float32)
        flat = values.reshape(-1)
        for_each_part(len(flat), lambda low, high: _gather(flat, self.places[low:high], ordered[low:high]), _FEWEST)
        return ordered

    def parts(self) -> list[tuple[int, int]]:
        """Return ranges of rows, one for each thread, that have about equally many entries."""
        threads = min(torch.get_num_threads(), max(1, len(self.queries) // _FEWEST))
        cuts = np.searchsorted(self.starts, np.linspace(0, len(self.queries), threads + 1)[1:-1]).tolist()
        return list(pairwise([0, *cuts, len(self.starts) - 1]))


@kernel
def _sort(index: np.ndarray, starts: np.ndarray, queries: np.ndarray, places: np.ndarray) -> None:
    for i in range(index.shape[0]):
        for k in range(index.shape[1]):
            starts[index[i, k] + 1] += 1
    for row in range(starts.shape[0] - 1):
        starts[row + 1] += starts[row]
    position = starts.copy()
    for i in range(index.shape[0]):
        for k in range(index.shape[1]):
            entry = position[index[i, k]]
            position[index[i, k]] += 1
            queries[entry] = i
            places[entry] = i * index.shape[1] + k


@kernel
def _scatter(values: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    for entry in range(places.shape[0]):
        out[places[entry]] = values[entry]


@kernel
def _gather(values: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    for entry in range(places.shape[0]):
        out[entry] = values[places[entry]]
