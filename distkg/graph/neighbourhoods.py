"""Neighbour sampling: edges around some nodes, with a fanout at every step.

``DglSampler`` and ``PlainSampler`` (without DGL) sample from the same distribution: for a node with more edges than the
fanout, every subset of that size is equally likely.
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
    """Neighbour sampler.

    Args of a call:
        starts: int64 [s], nodes.
        fanouts: largest number of edges per new node at each step.
        seed: random seed.

    Returns:
        int64 [m], sorted and unique: indices of edges in the arrays from which the sampler was built.
    """

    def __call__(self, starts: NDArray[np.int64], fanouts: Sequence[int], seed: int) -> NDArray[np.int64]: ...


class PlainSampler:
    """Compiled neighbour sampler over edges source → target, integer [E] each, followed from source to target."""

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
    """Neighbour sampler with ``dgl.sampling.sample_neighbors``; arguments as of ``PlainSampler``.

    Raises:
        MissingDglError: DGL cannot be used.
    """

    def __init__(self, source: np.ndarray, target: np.ndarray, nodes: int) -> None:
        self._source, self._target, self._nodes = source, target, nodes
        self._graph: Any = None

    def __call__(self, starts: NDArray[np.int64], fanouts: Sequence[int], seed: int) -> NDArray[np.int64]:
        import torch  # imported here, so that reading files does not load it

        dgl = import_dgl("data.sampler: compiled")
        if self._graph is None:  # at first use, since a process that only passes the sampler on needs no DGL
            ends = (torch.from_numpy(np.array(side, dtype=np.int64)) for side in (self._source, self._target))
            self._graph = dgl.graph(tuple(ends), num_nodes=self._nodes)

        def edges_of(front: NDArray[np.int64], fanout: int, step: int) -> NDArray[np.int64]:
            dgl.seed((seed + step) % (1 << 31))
            subgraph = dgl.sampling.sample_neighbors(self._graph, torch.from_numpy(front), fanout, edge_dir="out")
            edges: NDArray[np.int64] = subgraph.edata[dgl.EID].numpy()
            return edges

        return _step_by_step(starts, fanouts, self._target, self._nodes, edges_of)


def _step_by_step(starts, fanouts, target, nodes, edges_of) -> NDArray[np.int64]:  # type: ignore[no-untyped-def]
    visited = np.zeros(nodes, dtype=np.bool_)
    front = np.unique(starts)
    sampled = [np.empty(0, dtype=np.int64)]
    for step, fanout in enumerate(fanouts):
        visited[front] = True
        edges = edges_of(front, fanout, step)
        sampled.append(edges)
        reached = np.unique(target[edges])
        front = reached[~visited[reached]].astype(np.int64)
    return np.unique(np.concatenate(sampled))


@njit(cache=True, nogil=True)
def _some_edges(
    front: np.ndarray, offsets: np.ndarray, order: np.ndarray, fanout: int, uniforms: np.ndarray
) -> np.ndarray:
    """Sample at most ``fanout`` edges of each node, given one uniform number in [0, 1) per sampled edge."""
    sampled = np.empty(uniforms.shape[0], dtype=np.int64)
    place = 0
    for v in front:
        low, degree = offsets[v], offsets[v + 1] - offsets[v]
        first = place
        for last in range(max(0, degree - fanout), degree):  # Floyd's algorithm for distinct numbers
            chosen = int(uniforms[place] * (last + 1)) if degree > fanout else last
            for previous in range(first, place):
                if sampled[previous] == chosen:
                    chosen = last
                    break
            sampled[place] = chosen
            place += 1
        for previous in range(first, place):
            sampled[previous] = order[low + sampled[previous]]
    return sampled
