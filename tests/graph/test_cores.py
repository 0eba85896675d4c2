"""Core numbers against the definition, and against NetworkX on simple graphs."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distkg.graph.cores import core_numbers, triples_by_core

Edges = list[tuple[int, int]]


def by_definition(edges: Edges, nodes: int) -> list[int]:
    """Remove nodes with fewer than k edges until none is left, for each k."""
    numbers = [0] * nodes
    for k in range(1, len(edges) + 1):
        inside = set(range(nodes))
        while True:
            kept = [(a, b) for a, b in edges if a != b and a in inside and b in inside]
            few = {node for node in inside if sum(node in edge for edge in kept) < k}
            if not few:
                break
            inside -= few
        for node in inside:
            numbers[node] = k
    return numbers


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Edges, int]:
    nodes = draw(st.integers(1, 9))
    node = st.integers(0, nodes - 1)
    return draw(st.lists(st.tuples(node, node), max_size=30)), nodes


def array(edges: Edges) -> np.ndarray:
    return np.array(edges, np.int32).reshape(-1, 2)


@given(graphs())
def test_core_numbers_are_those_of_the_definition(graph: tuple[Edges, int]) -> None:
    edges, nodes = graph
    assert core_numbers(array(edges), nodes).tolist() == by_definition(edges, nodes)


@given(graphs())
def test_triples_inside_a_core_are_counted_for_every_k(graph: tuple[Edges, int]) -> None:
    edges, nodes = graph
    cores = by_definition(edges, nodes)
    expected = [sum(min(cores[a], cores[b]) >= k for a, b in edges) for k in range(max(cores) + 1)]
    assert triples_by_core(array(edges), np.array(cores, np.int32)).tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_core_numbers_of_a_simple_graph_are_those_of_networkx(seed: int) -> None:
    graph = nx.barabasi_albert_graph(400, 5, seed=seed)
    graph.add_edges_from(nx.gnp_random_graph(60, 0.3, seed=seed).edges)
    cores = core_numbers(np.array(graph.edges, np.int64), 400)
    assert cores.tolist() == [nx.core_number(graph)[node] for node in range(400)]
    assert len(set(cores.tolist())) > 3


def test_parallel_edges_count_each_and_loops_do_not() -> None:
    edges = array([(0, 1), (0, 1), (1, 0), (1, 2), (2, 2), (2, 2), (2, 2)])
    cores = core_numbers(edges, 4)
    assert cores.tolist() == [3, 3, 1, 0]
    assert triples_by_core(edges, cores).tolist() == [7, 7, 3, 3]
    assert core_numbers(array([]), 0).tolist() == []
