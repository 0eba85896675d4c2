"""Structural features against NetworkX, exact and estimated."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distkg.graph.structure import structure

NODES = 12


def networkx_graph(triples: np.ndarray, entities: int) -> nx.Graph:
    graph = nx.Graph()
    graph.add_nodes_from(range(entities))
    graph.add_edges_from((int(h), int(t)) for h, _, t in triples if h != t)
    return graph


def column(values: dict[int, float]) -> list[float]:
    return [values[node] for node in sorted(values)]


@given(st.lists(st.tuples(st.integers(0, NODES - 1), st.integers(0, 2), st.integers(0, NODES - 1)), max_size=40))
def test_with_every_pivot_all_six_are_those_of_networkx(found: list[tuple[int, int, int]]) -> None:
    triples = np.array(found, dtype=np.int64).reshape(-1, 3)
    graph, features = networkx_graph(triples, NODES), structure(triples, NODES, pivots=NODES)
    assert features.betweenness == pytest.approx(column(nx.betweenness_centrality(graph)))
    assert features.closeness == pytest.approx(column(nx.harmonic_centrality(graph)))
    assert features.clustering == pytest.approx(column(nx.clustering(graph)))
    assert features.neighbour_degree == pytest.approx(column(nx.average_neighbor_degree(graph)))
    assert features.pagerank == pytest.approx(column(nx.pagerank(graph, tol=1e-12, max_iter=500)), abs=1e-9)
    assert features.triples.tolist() == [sum(v in (h, t) for h, _, t in found) for v in range(NODES)]


def test_by_hand_on_a_path_of_three_with_a_loop_and_a_double_edge() -> None:
    triples = np.array([[0, 0, 1], [1, 1, 0], [1, 0, 2], [2, 0, 2]])
    features = structure(triples, 4)
    assert features.betweenness.tolist() == pytest.approx([0, 1 / 3, 0, 0])  # one pair of three others
    assert features.closeness.tolist() == [1.5, 2, 1.5, 0]
    assert features.clustering.tolist() == [0, 0, 0, 0]
    assert features.triples.tolist() == [2, 3, 2, 0]
    assert features.neighbour_degree.tolist() == [2, 1, 2, 0]


def test_a_sample_of_pivots_estimates_without_bias() -> None:
    generator = np.random.default_rng(0)
    triples = generator.integers(0, [60, 3, 60], (200, 3))
    exact = structure(triples, 60, pivots=60)
    drawn = [structure(triples, 60, pivots=20, seed=seed) for seed in range(200)]
    for name in ("betweenness", "closeness"):
        mean = np.mean([getattr(each, name) for each in drawn], axis=0)
        assert mean == pytest.approx(getattr(exact, name), rel=0.1, abs=0.002)


def test_a_seed_decides_the_pivots() -> None:
    triples = np.random.default_rng(0).integers(0, [60, 3, 60], (200, 3))
    first, second, other = (structure(triples, 60, pivots=5, seed=seed).closeness for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_standardised_features_have_mean_0_and_deviation_1() -> None:
    triples = np.random.default_rng(0).integers(0, [60, 3, 60], (200, 3))
    features = structure(triples, 60).standardised()
    assert features.dtype == np.float32
    assert features.shape == (60, 6)
    assert features.mean(0) == pytest.approx(np.zeros(6), abs=1e-6)
    assert features.std(0) == pytest.approx(np.ones(6), abs=1e-5)
    alone = structure(np.empty((0, 3), dtype=np.int64), 5).standardised()
    assert np.array_equal(alone, np.zeros((5, 6)))
