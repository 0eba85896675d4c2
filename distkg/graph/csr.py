"""Adjacency in compressed sparse rows, with NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def grouped_by(key: np.ndarray, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the offsets and the order that group entries into compressed rows by key.

    Args:
        key: integer [m] in [0, rows).

    Returns:
        offsets int64 [rows + 1], and the order int64 [m] that sorts entries by row and is stable.
    """
    offsets = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(key, minlength=rows), out=offsets[1:])
    return offsets, np.argsort(key, kind="stable")


def row_of_each(offsets: NDArray[np.int64], dtype: type[np.signedinteger[Any]] = np.int64) -> NDArray[Any]:
    """Return the row of each entry of compressed rows, 0 for ``offsets[0]:offsets[1]``: [offsets[-1] - offsets[0]]."""
    return np.repeat(np.arange(len(offsets) - 1, dtype=dtype), np.diff(offsets))


def expanded_ranges(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions ``starts[i]:ends[i]`` of all ranges, one range after the other, and the range of each.

    Args:
        starts, ends: int64 [n]; no range ends before it starts.

    Returns:
        range i of each position, and the position: int64 [(ends - starts).sum()] each.
    """
    counts = ends - starts
    row = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return row, np.arange(len(row)) - np.repeat(before - starts, counts)


@dataclass(frozen=True)
class Csr:
    """Compressed sparse rows: the neighbours of node v are ``neighbours[offsets[v]:offsets[v + 1]]``.

    Attributes:
        offsets: int64 [n + 1].
        neighbours: int32 [edges].
    """

    offsets: NDArray[np.int64]
    neighbours: NDArray[np.int32]

    @classmethod
    def undirected(cls, edges: np.ndarray, n: int) -> Csr:
        """Build from both directions of edges [m, 2] between nodes in [0, n), without loops, with parallel edges."""
        edges = edges[edges[:, 0] != edges[:, 1]]
        source = np.concatenate([edges[:, 0], edges[:, 1]])
        target = np.concatenate([edges[:, 1], edges[:, 0]])
        offsets, order = grouped_by(source, n)
        return cls(offsets, target[order].astype(np.int32))

    @property
    def sources(self) -> NDArray[np.int32]:
        """Row of each entry of ``neighbours``, the node at the other end of the edge: int32 [edges]."""
        return row_of_each(self.offsets, np.int32)
