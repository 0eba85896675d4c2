"""Random walks against the exact distribution of their ends, and balls against a plain search."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distkg.graph.csr import Csr
from distkg.graph.walks import Walker, ball_sizes, dgl_walks, plain_walks
from tests.with_dgl import needs_dgl

# A square with a diagonal and a tail: 0-1-2-3-0, 0-2, 3-4; 5 has no neighbour; 1-2 twice, so it weighs double.
EDGES = np.array([[0, 1], [1, 2], [2, 1], [2, 3], [3, 0], [0, 2], [3, 4]])
NODES = 6

WALKERS = pytest.mark.parametrize("make", [pytest.param(dgl_walks, marks=needs_dgl), plain_walks])


def transitions() -> np.ndarray:
    counts = np.zeros((NODES, NODES))
    for head, tail in EDGES:
        counts[head, tail] += 1
        counts[tail, head] += 1
    counts[5, 5] = 1
    return counts / counts.sum(1, keepdims=True)


@WALKERS
@pytest.mark.parametrize("start", range(NODES))
def test_where_walks_end(make: type[Walker], start: int) -> None:
    met = make(EDGES, NODES)(np.full(20_000, start), 3, 7)
    assert met.shape == (20_000, 4)
    assert (met[:, 0] == start).all()
    expected = np.linalg.matrix_power(transitions(), 3)[start]
    counts = np.bincount(met[:, -1], minlength=NODES)
    reachable = expected > 0
    assert not counts[~reachable].any()
    if reachable.sum() > 1:
        assert stats.chisquare(counts[reachable], expected[reachable] * 20_000).pvalue > 1e-4


@WALKERS
def test_walks_follow_their_seed(make: type[Walker]) -> None:
    walk = make(EDGES, NODES)
    first, again, other = (walk(np.zeros(200, np.int64), 4, seed) for seed in (3, 3, 4))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@WALKERS
def test_a_graph_without_edges_is_walked_in_place(make: type[Walker]) -> None:
    assert make(np.empty((0, 2), np.int64), 3)(np.array([2, 0]), 2, 0).tolist() == [[2, 2, 2], [0, 0, 0]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=14), st.integers(1, 3))
def test_balls_are_those_of_a_plain_search(edges: list[tuple[int, int]], steps: int) -> None:
    graph = nx.Graph(edges)
    graph.add_nodes_from(range(9))
    expected = [len(nx.single_source_shortest_path_length(graph, node, cutoff=steps)) - 1 for node in range(9)]
    assert ball_sizes(Csr.undirected(np.array(edges), 9), np.arange(9), steps).tolist() == expected
