"""Random walks from nodes, and sizes of their k-hop neighbourhoods.

``dgl_walks`` and ``plain_walks`` (without DGL) sample from the same distribution: each step follows a uniformly random
edge.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from distkg.compilation import njit
from distkg.graph.csr import Csr
from distkg.graph.partition import import_dgl


class Walker(Protocol):
    """Random-walk sampler.

    Args of a call:
        starts: int64 [w], nodes.
        steps: number of steps.
        seed: random seed.

    Returns:
        int64 [w, steps + 1], visited nodes, the start first; a walk stays at a node without neighbours.
    """

    def __call__(self, starts: NDArray[np.int64], steps: int, seed: int) -> NDArray[np.int64]: ...


def dgl_walks(edges: np.ndarray, n: int) -> Walker:
    """Build a walker on ``dgl.sampling.random_walk``, which takes three times as long as ``plain_walks`` (FB15k-237,
    two steps, one core).

    Raises:
        MissingDglError: DGL cannot be used.
    """
    import torch  # imported here, so that reading files does not load it

    dgl = import_dgl("negatives.options.sampler: compiled")
    csr = Csr.undirected(edges, n)
    graph = dgl.graph(("csr", (torch.from_numpy(csr.offsets), torch.from_numpy(csr.neighbours.astype(np.int64)), [])))
    return partial(_walk_by_dgl, graph)


def _walk_by_dgl(graph: Any, starts: NDArray[np.int64], steps: int, seed: int) -> NDArray[np.int64]:
    import torch

    dgl = import_dgl("negatives.options.sampler: compiled")
    dgl.seed(seed % (1 << 31))
    traces, _ = dgl.sampling.random_walk(graph, torch.from_numpy(starts), length=steps)
    visited: NDArray[np.int64] = traces.numpy()
    stayed = visited < 0  # DGL ends a walk at a node without neighbours
    return np.where(stayed, starts[:, None], visited) if stayed.any() else visited


def plain_walks(edges: np.ndarray, n: int) -> Walker:
    """Build a compiled walker; a node without neighbours is its own neighbour."""
    return partial(_walk_compiled, Csr.undirected(edges, n))


def _walk_compiled(csr: Csr, starts: NDArray[np.int64], steps: int, seed: int) -> NDArray[np.int64]:
    visited = np.empty((len(starts), steps + 1), dtype=np.int64)
    visited[:, 0] = starts
    uniforms = np.random.default_rng(seed).integers(0, 1 << 62, (len(starts), steps))
    _walk(csr.offsets, csr.neighbours, uniforms, visited)
    return visited


def ball_sizes(csr: Csr, centres: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """Count the other nodes within ``steps`` steps of each centre: int64 [c]."""
    sizes = np.zeros(len(centres), dtype=np.int64)
    nodes = len(csr.offsets) - 1
    _ball_sizes(csr.offsets, csr.neighbours, centres, steps, np.full(nodes, -1), np.empty(nodes, np.int64), sizes)
    return sizes


@njit(cache=True)
def _walk(offsets: np.ndarray, neighbours: np.ndarray, uniforms: np.ndarray, met: np.ndarray) -> None:
    for i in range(met.shape[0]):
        for step in range(uniforms.shape[1]):
            node = met[i, step]
            degree = offsets[node + 1] - offsets[node]
            met[i, step + 1] = neighbours[offsets[node] + uniforms[i, step] % degree] if degree > 0 else node


@njit(cache=True)
def _ball_sizes(
    offsets: np.ndarray,
    neighbours: np.ndarray,
    centres: np.ndarray,
    steps: int,
    seen_by: np.ndarray,
    queue: np.ndarray,
    sizes: np.ndarray,
) -> None:
    for i in range(centres.shape[0]):
        queue[0] = centres[i]
        seen_by[centres[i]] = i
        begin, end = 0, 1
        for _ in range(steps):
            ring_end = end
            for place in range(begin, ring_end):
                node = queue[place]
                for edge in range(offsets[node], offsets[node + 1]):
                    other = neighbours[edge]
                    if seen_by[other] != i:
                        seen_by[other] = i
                        queue[end] = other
                        end += 1
            begin = ring_end
        sizes[i] = end - 1
