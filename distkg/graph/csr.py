"""Adjacency in compressed sparse rows, with NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
        offsets = np.zeros(n + 1, dtype=np.int64)
        np.cumsum(np.bincount(source, minlength=n), out=offsets[1:])
        return cls(offsets, target[np.argsort(source, kind="stable")].astype(np.int32))

    @property
    def sources(self) -> NDArray[np.int32]:
        """Row of each entry of ``neighbours``, the node at the other end of the edge: int32 [edges]."""
        return np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int32), np.diff(self.offsets))
