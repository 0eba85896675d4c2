"""Core numbers of a graph: the k-core is the largest subgraph in which every node has at least k edges.

Bucket algorithm of Batagelj and Zaversnik (2003, arXiv cs/0310049): time linear in the edges. Parallel edges count
each, so that in a knowledge graph every entity of the k-core is in at least k of its triples; loops do not count. GraSH
(Kochsiek et al. 2022) trains the first rounds of a hyperparameter search on such cores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distkg.compilation import njit
from distkg.graph.csr import Csr


def core_numbers(edges: np.ndarray, nodes: int) -> NDArray[np.int32]:
    """Return the largest k of each node such that the k-core holds it: int32 [nodes].

    Memory: 16 bytes for each node and 24 for each edge, most of them while the edges are sorted.

    Args:
        edges: integer [m, 2], both ends in [0, nodes).
    """
    if not nodes:
        return np.empty(0, np.int32)
    graph = Csr.undirected(edges, nodes)
    degree = np.diff(graph.offsets).astype(np.int32)
    # Nodes by rising degree; the nodes with degree d are at starts[d]:starts[d + 1].
    starts = np.concatenate([[0], np.cumsum(np.bincount(degree))]).astype(np.int64)
    order = np.argsort(degree, kind="stable").astype(np.int32)
    position = np.empty(nodes, np.int64)
    position[order] = np.arange(nodes)
    _peel(graph.offsets, graph.neighbours, degree, starts, order, position)
    return degree


def triples_by_core(edges: np.ndarray, cores: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the number of edges inside each core, loops included: int64 [largest core number + 1], for k from 0."""
    level = np.minimum(cores[edges[:, 0]], cores[edges[:, 1]])
    counts = np.bincount(level, minlength=int(cores.max(initial=0)) + 1)
    return np.cumsum(counts[::-1])[::-1].astype(np.int64)


@njit(cache=True)
def _peel(
    offsets: np.ndarray,
    neighbours: np.ndarray,
    degree: np.ndarray,
    starts: np.ndarray,
    order: np.ndarray,
    position: np.ndarray,
) -> None:
    """Remove nodes by rising degree; what is left of a node's degree when it is removed is its core number."""
    for i in range(len(order)):
        node = order[i]
        for place in range(offsets[node], offsets[node + 1]):
            other = neighbours[place]
            if degree[other] > degree[node]:
                _move_down(other, degree, starts, order, position)


@njit(cache=True)
def _move_down(node: int, degree: np.ndarray, starts: np.ndarray, order: np.ndarray, position: np.ndarray) -> None:
    """Exchange a node with the first one of its degree, which ends the bucket below."""
    first = starts[degree[node]]
    other, place = order[first], position[node]
    order[first], order[place] = node, other
    position[node], position[other] = first, place
    starts[degree[node]] += 1
    degree[node] -= 1
