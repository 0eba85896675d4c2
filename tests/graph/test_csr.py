from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distkg.graph.csr import Csr, expanded_ranges, grouped_by, row_of_each


def test_both_directions_are_kept_and_loops_left_out() -> None:
    edges = np.array([[0, 1], [1, 2], [3, 3], [0, 1], [2, 0]])
    graph = Csr.undirected(edges, n=5)
    assert graph.offsets.tolist() == [0, 3, 6, 8, 8, 8]
    neighbours = [sorted(graph.neighbours[a:b]) for a, b in zip(graph.offsets[:-1], graph.offsets[1:], strict=True)]
    assert neighbours == [[1, 1, 2], [0, 0, 2], [0, 1], [], []]
    assert graph.sources.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert graph.neighbours.dtype == np.int32
    assert graph.offsets.dtype == np.int64


def test_a_graph_without_edges_has_empty_rows() -> None:
    graph = Csr.undirected(np.empty((0, 2), dtype=np.int32), n=2)
    assert graph.offsets.tolist() == [0, 0, 0]
    assert len(graph.neighbours) == 0


def test_places_of_three_ranges() -> None:
    row, place = expanded_ranges(np.array([4, 9, 0]), np.array([7, 9, 2]))
    assert row.tolist() == [0, 0, 0, 2, 2]
    assert place.tolist() == [4, 5, 6, 0, 1]


def test_rows_of_entries() -> None:
    assert row_of_each(np.array([0, 2, 2, 3])).tolist() == [0, 0, 2]
    assert row_of_each(np.array([5, 6, 8]), np.int32).tolist() == [0, 1, 1]  # a part of longer offsets
    assert row_of_each(np.array([5, 6, 8]), np.int32).dtype == np.int32
    assert row_of_each(np.array([0])).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4)), max_size=10))
def test_ranges_are_those_of_a_loop(ranges: list[tuple[int, int]]) -> None:
    starts, sizes = np.array(ranges, np.int64).reshape(-1, 2).T
    row, place = expanded_ranges(starts, starts + sizes)
    assert (row.dtype, place.dtype) == (np.int64, np.int64)
    expected = [(i, at) for i, (start, size) in enumerate(ranges) for at in range(start, start + size)]
    assert list(zip(row.tolist(), place.tolist(), strict=True)) == expected
    assert row_of_each(np.concatenate([[0], np.cumsum(sizes)])).tolist() == row.tolist()


def test_entries_are_grouped_by_their_keys() -> None:
    offsets, order = grouped_by(np.array([3, 0, 3, 1], np.int32), 5)
    assert offsets.tolist() == [0, 1, 2, 2, 4, 4]
    assert order.tolist() == [1, 3, 0, 2]
    assert (offsets.dtype, order.dtype) == (np.int64, np.int64)


@given(st.lists(st.integers(0, 5), max_size=12))
def test_rows_of_groups_are_their_keys(keys: list[int]) -> None:
    offsets, order = grouped_by(np.array(keys, np.int64), 6)
    assert row_of_each(offsets).tolist() == [keys[place] for place in order] == sorted(keys)
    assert [list(order[low:high]) for low, high in pairwise(offsets)] == [
        [place for place, key in enumerate(keys) if key == row] for row in range(6)
    ]
