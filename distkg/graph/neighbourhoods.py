"""The edges around some nodes, a few of each node at every step away from them.

``DglSampler`` (DGL's) and ``PlainSampler`` (no DGL needed) draw from the same distribution: of a node with more edges
than are wanted, every set of that many alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from distkg.compilation import njit
from distkg.graph.csr import grouped_by
from distkg.graph.partition import import_dgl


class EdgeSampler(Protocol):
    """Samples edges step by step.

    Args of a call:
        starts: int64 [s], nodes.
        fanouts: at each step, the edges kept of every node that was met for the first time, at most.
        seed: decides which.

    Returns:
        int64 [m], sorted and unique: places of edges in the arrays that the sampler was made of.
    """

    def __call__(self, starts: NDArray[np.int64], fanouts: Sequence[int], seed: int) -> NDArray[np.int64]: ...


class PlainSampler:
    """Compiled, of edges source → target, integer [E] each, followed from source to target."""

    def __init__(self, source: np.ndarray, target: np.ndarray, nodes: int) -> None:
        self._target, self._nodes = target, nodes
        self._offsets, self._order = grouped_by(source, nodes)

    def __call__(self, starts: NDArray[np.int64], fanouts: Sequence[int], seed: int) -> NDArray[np.int64]:
        def edges_of(front: NDArray[np.int64], fanout: int, step: int) -> NDArray[np.int64]:
            counts = np.minimum(self._offsets[front + 1] - self._offsets[front], fanout)
            uniforms = np.random.default_rng([seed, step]).random(int(counts.sum()))
            return _some_edges(front, self._offsets, self._order, fanout, uniforms)

        return _step_by_step(starts, fanouts, self._target, self._nodes, edges_of)


class DglSampler:
    """Through ``dgl.sampling.sample_neighbors``; of edges as ``PlainSampler``.

    Raises:
        MissingDglError: DGL cannot be used.
    """

    def __init__(self, source: np.ndarray, target: np.ndarray, nodes: int) -> None:
        self._source, self._target, self._nodes = source, target, nodes
        self._graph: Any = None

    def __call__(self, starts: NDArray[np.int64], fanouts: Sequence[int], seed: int) -> NDArray[np.int64]:
        import torch  # here, so that reading files does not wait for it

        dgl = import_dgl("data.sampler: compiled")
        if self._graph is None:  # not before, as a process that only passes the sampler on needs no DGL
            ends = (torch.from_numpy(np.array(side, dtype=np.int64)) for side in (self._source, self._target))
            self._graph = dgl.graph(tuple(ends), num_nodes=self._nodes)

        def edges_of(front: NDArray[np.int64], fanout: int, step: int) -> NDArray[np.int64]:
            dgl.seed((seed + step) % (1 << 31))
            found = dgl.sampling.sample_neighbors(self._graph, torch.from_numpy(front), fanout, edge_dir="out")
            edges: NDArray[np.int64] = found.edata[dgl.EID].numpy()
            return edges

        return _step_by_step(starts, fanouts, self._target, self._nodes, edges_of)


def _step_by_step(starts, fanouts, target, nodes, edges_of) -> NDArray[np.int64]:  # type: ignore[no-untyped-def]
    met = np.zeros(nodes, dtype=np.bool_)
    front = np.unique(starts)
    found = [np.empty(0, dtype=np.int64)]
    for step, fanout in enumerate(fanouts):
        met[front] = True
        edges = edges_of(front, fanout, step)
        found.append(edges)
        reached = np.unique(target[edges])
        front = reached[~met[reached]].astype(np.int64)
    return np.unique(np.concatenate(found))


@njit(cache=True, nogil=True)
def _some_edges(
    front: np.ndarray, offsets: np.ndarray, order: np.ndarray, fanout: int, uniforms: np.ndarray
) -> np.ndarray:
    """One ticket in [0, 1) for each edge that is wanted."""
    found = np.empty(uniforms.shape[0], dtype=np.int64)
    place = 0
    for v in front:
        low, degree = offsets[v], offsets[v + 1] - offsets[v]
        first = place
        for last in range(max(0, degree - fanout), degree):  # Floyd's choice of distinct numbers
            chosen = int(uniforms[place] * (last + 1)) if degree > fanout else last
            for taken in range(first, place):
                if found[taken] == chosen:
                    chosen = last
                    break
            found[place] = chosen
            place += 1
        for taken in range(first, place):
            found[taken] = order[low + found[taken]]
    return found
