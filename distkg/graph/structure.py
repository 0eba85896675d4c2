"""Six structural features of entities, on the undirected graph without loops or parallel edges.

Betweenness and closeness depend on all shortest paths; on large graphs both are estimated without bias from a sample of
pivots (Brandes, Pich 2007). The others are exact. DANS-KGC (arXiv 2511.07901) measures the difficulty of an entity with
these features. Definitions are those of NetworkX.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from distkg.compilation import njit
from distkg.graph.csr import Csr

Floats = NDArray[np.float64]
DAMPING, TOLERANCE, MOST_ITERATIONS = 0.85, 1e-10, 200


@dataclass(frozen=True)
class Structure:
    """Structural features, float64 [n] each.

    Attributes:
        betweenness: share of the shortest paths between other entities that pass through the entity.
        closeness: harmonic closeness: sum of 1 / distance to all others, with 0 for unreachable ones.
        clustering: share of the pairs of neighbours that are linked; 0 with fewer than two neighbours.
        triples: number of triples with the entity.
        neighbour_degree: mean degree of the neighbours; 0 without neighbours.
        pagerank: PageRank with damping 0.85.
    """

    betweenness: Floats
    closeness: Floats
    clustering: Floats
    triples: Floats
    neighbour_degree: Floats
    pagerank: Floats

    def standardised(self) -> NDArray[np.float32]:
        """Standardise log(1 + x) of each feature to mean 0 and deviation 1: float32 [n, 6]; 0 for a constant one."""
        logged = np.log1p(np.stack(astuple(self), axis=1))
        centred = logged - logged.mean(0)
        deviation = centred.std(0)
        return np.where(deviation > 1e-12, centred / np.maximum(deviation, 1e-12), 0.0).astype(np.float32)


def structure(triples: np.ndarray, entities: int, *, pivots: int = 256, seed: int = 0) -> Structure:
    """Compute the structural features of the entities of integer triples [m, 3].

    ``pivots`` entities, drawn without replacement, are the sources of shortest paths; with all entities as pivots
    betweenness and closeness are exact. Time: ``pivots`` times the edges.
    """
    graph = simple_graph(triples[:, ::2], entities)
    degree = np.diff(graph.offsets).astype(np.float64)
    chosen = np.random.default_rng(seed).permutation(entities)[: min(pivots, entities)].astype(np.int64)
    through, near = _shortest_paths(graph.offsets, graph.neighbours, chosen)
    scale = entities / max(len(chosen), 1)
    pairs = max((entities - 1) * (entities - 2), 1)
    around = _sums_over_neighbours(graph, degree)
    return Structure(
        betweenness=through * scale / pairs,
        closeness=near * scale,
        clustering=_clustering(graph.offsets, graph.neighbours),
        triples=_triples_of(triples, entities),
        neighbour_degree=around / np.maximum(degree, 1),
        pagerank=_pagerank(graph, degree),
    )


def simple_graph(edges: np.ndarray, n: int) -> Csr:
    """Build the undirected graph without loops and parallel edges, with sorted neighbours."""
    low, high = np.minimum(edges[:, 0], edges[:, 1]).astype(np.int64), np.maximum(edges[:, 0], edges[:, 1])
    keys = np.unique(low * n + high)
    graph = Csr.undirected(np.stack([keys // n, keys % n], axis=1), n)
    _sort_rows(graph.offsets, graph.neighbours)
    return graph


def _triples_of(triples: np.ndarray, entities: int) -> Floats:
    head, tail = triples[:, 0], triples[:, 2]
    ends = np.concatenate([head, tail[tail != head]])
    return np.bincount(ends, minlength=entities).astype(np.float64)


def _sums_over_neighbours(graph: Csr, values: Floats) -> Floats:
    sums: Floats = np.bincount(graph.sources, values[graph.neighbours], minlength=len(values)).astype(np.float64)
    return sums


def _pagerank(graph: Csr, degree: Floats) -> Floats:
    """Compute PageRank by power iteration; isolated nodes distribute their weight to all."""
    n = len(degree)
    rank, out_degree = np.full(n, 1 / n), np.maximum(degree, 1)
    for _ in range(MOST_ITERATIONS):
        lost = rank[degree == 0].sum()
        new = DAMPING * (_sums_over_neighbours(graph, rank / out_degree) + lost / n) + (1 - DAMPING) / n
        moved, rank = np.abs(new - rank).sum(), new
        if moved < TOLERANCE:
            break
    return rank


@njit(cache=True, nogil=True)
def _sort_rows(offsets: np.ndarray, neighbours: np.ndarray) -> None:
    for v in range(len(offsets) - 1):
        neighbours[offsets[v] : offsets[v + 1]].sort()


@njit(cache=True, nogil=True)
def _shortest_paths(offsets: np.ndarray, neighbours: np.ndarray, pivots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum over pivots the dependencies of each node (Brandes 2001, algorithm 1), and 1 / distance to it."""
    n = len(offsets) - 1
    through, near = np.zeros(n), np.zeros(n)
    distance, paths, share = np.full(n, -1, np.int32), np.zeros(n), np.zeros(n)
    reached = np.empty(n, np.int64)
    for pivot in pivots:
        distance[pivot], paths[pivot], reached[0], count, at = 0, 1.0, pivot, 1, 0
        while at < count:
            v = reached[at]
            at += 1
            for place in range(offsets[v], offsets[v + 1]):
                w = neighbours[place]
                if distance[w] < 0:
                    distance[w] = distance[v] + 1
                    reached[count] = w
                    count += 1
                if distance[w] == distance[v] + 1:
                    paths[w] += paths[v]
        for at in range(count - 1, 0, -1):
            w = reached[at]
            near[w] += 1.0 / distance[w]
            through[w] += share[w]
            part = (1.0 + share[w]) / paths[w]
            for place in range(offsets[w], offsets[w + 1]):
                v = neighbours[place]
                if distance[v] == distance[w] - 1:
                    share[v] += paths[v] * part
        for at in range(count):
            v = reached[at]
            distance[v], paths[v], share[v] = -1, 0.0, 0.0
    return through, near


@njit(cache=True, nogil=True)
def _clustering(offsets: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Count the triangles of each node. Each is visited once, from its node of least (degree, id), by merging rows."""
    n = len(offsets) - 1
    triangles = np.zeros(n)
    ahead_of, ahead = np.zeros(n + 1, np.int64), np.empty(len(neighbours) // 2, np.int32)
    count = 0
    for v in range(n):
        degree = offsets[v + 1] - offsets[v]
        for place in range(offsets[v], offsets[v + 1]):
            w = neighbours[place]
            other = offsets[w + 1] - offsets[w]
            if other > degree or (other == degree and w > v):
                ahead[count] = w
                count += 1
        ahead_of[v + 1] = count
    for v in range(n):
        for place in range(ahead_of[v], ahead_of[v + 1]):
            w = ahead[place]
            i, j = ahead_of[v], ahead_of[w]
            while i < ahead_of[v + 1] and j < ahead_of[w + 1]:
                if ahead[i] < ahead[j]:
                    i += 1
                elif ahead[i] > ahead[j]:
                    j += 1
                else:
                    triangles[v] += 1
                    triangles[w] += 1
                    triangles[ahead[i]] += 1
                    i += 1
                    j += 1
    for v in range(n):
        degree = offsets[v + 1] - offsets[v]
        if degree > 1:
            triangles[v] *= 2.0 / (degree * (degree - 1))
    return triangles
