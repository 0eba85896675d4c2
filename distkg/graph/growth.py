"""Partition of a graph into two sides, each grown from many seeds along its edges, to keep neighbours together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distkg.compilation import njit
from distkg.graph.csr import grouped_by


def grow_two_sides(
    edges: tuple[np.ndarray, np.ndarray], nodes: int, first: int, seed: int, steps: int = 2, fanout: int = 10
) -> NDArray[np.int8]:
    """Assign each node to side 0 or 1: int8 [nodes]; side 0 gets ``first`` nodes.

    In random order, an unassigned node goes to the side that lacks the larger share of its nodes, together with the
    unassigned nodes within ``steps`` steps over at most ``fanout`` edges of each node. GraIL (Teru et al. 2020) and
    InGram (Lee et al. 2023) sample such neighbourhoods for one graph and give the rest to the other, which then lacks
    the hubs. Here the sides take turns: on WN18RR each keeps about a third of the facts, instead of a half and a fifth.

    Args:
        edges: edges along which each side grows, integer [m, 2]; directions do not matter.
    """
    rng = np.random.default_rng(seed)
    (offsets, neighbours), (other_offsets, other_neighbours) = (_shuffled_adjacency(each, nodes, rng) for each in edges)
    side = np.full(nodes, -1, np.int8)
    targets = np.array([first, nodes - first])
    _grow(rng.permutation(nodes), offsets, neighbours, other_offsets, other_neighbours, targets, steps, fanout, side)
    return side


def largest_component(edges: np.ndarray, nodes: int) -> int:
    """Count the nodes of the largest connected component of undirected edges integer [m, 2]."""
    if not nodes:
        return 0
    parent = np.arange(nodes)
    _unite(np.ascontiguousarray(edges, np.int64), parent)
    return int(np.bincount(parent).max())


def _shuffled_adjacency(
    edges: np.ndarray, nodes: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the neighbours of each node in compressed sparse rows, in random order."""
    both = rng.permutation(np.concatenate([edges, edges[:, ::-1]]).astype(np.int32), axis=0)
    offsets, order = grouped_by(both[:, 0], nodes)
    return offsets, np.ascontiguousarray(both[order, 1])


@njit(cache=True)
def _grow(
    order: np.ndarray,
    offsets: np.ndarray,
    neighbours: np.ndarray,
    other_offsets: np.ndarray,
    other_neighbours: np.ndarray,
    wanted: np.ndarray,
    steps: int,
    fanout: int,
    side: np.ndarray,
) -> None:
    remaining = wanted.copy()
    queue = np.empty(order.size, np.int64)
    for start in order:
        if side[start] >= 0:
            continue
        # left / wanted, compared without division, since ``wanted`` may be 0.
        current = 0 if remaining[0] * wanted[1] >= remaining[1] * wanted[0] and remaining[0] > 0 else 1
        if remaining[current] == 0:
            current = 1 - current
        side[start] = current
        remaining[current] -= 1
        queue[0] = start
        low, high = 0, 1
        for _ in range(steps):
            end = high
            for place in range(low, end):
                node = queue[place]
                first = offsets[node] if current == 0 else other_offsets[node]
                last = offsets[node + 1] if current == 0 else other_offsets[node + 1]
                for edge in range(first, min(last, first + fanout)):
                    neighbour = neighbours[edge] if current == 0 else other_neighbours[edge]
                    if side[neighbour] < 0 and remaining[current] > 0:
                        side[neighbour] = current
                        remaining[current] -= 1
                        queue[high] = neighbour
                        high += 1
            low = end


@njit(cache=True)
def _unite(edges: np.ndarray, parent: np.ndarray) -> None:
    for edge in range(len(edges)):
        a, b = _root(parent, edges[edge, 0]), _root(parent, edges[edge, 1])
        parent[max(a, b)] = min(a, b)
    for node in range(parent.size):
        parent[node] = _root(parent, node)


@njit(cache=True)
def _root(parent: np.ndarray, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node
