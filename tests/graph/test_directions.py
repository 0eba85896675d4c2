"""Both directions of facts: literal numbers, and a loop over facts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distkg.graph.directions import both_directions, inverse_of, query_keys

RELATIONS = 3
TRIPLES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, RELATIONS - 1), st.integers(0, 9)), max_size=12)


def test_two_facts() -> None:
    head, relation, tail = np.array([[4, 1, 2], [0, 2, 0]], np.int32).T
    directions = both_directions(head, relation, tail, num_relations=RELATIONS)
    assert [column.tolist() for column in directions] == [[4, 0, 2, 0], [1, 2, 4, 5], [2, 0, 4, 0]]
    assert [column.dtype for column in directions] == [np.int32] * 3
    assert query_keys(*directions[:2], RELATIONS).tolist() == [25, 2, 16, 5]


@given(TRIPLES)
def test_equal_to_a_loop_over_facts(triples: list[tuple[int, int, int]]) -> None:
    expected = [(h, r, t) for h, r, t in triples] + [(t, r + RELATIONS, h) for h, r, t in triples]
    array = np.array(triples, np.int64).reshape(-1, 3)
    arrays = both_directions(*array.T, num_relations=RELATIONS)
    tensors = both_directions(*torch.from_numpy(array).unbind(1), num_relations=RELATIONS)
    for anchor, relation, answer in (arrays, tensors):
        assert list(zip(anchor.tolist(), relation.tolist(), answer.tolist(), strict=True)) == expected
        keys = query_keys(anchor, relation, RELATIONS).tolist()
        assert keys == [a * 2 * RELATIONS + r for a, r, _ in expected]
        assert [divmod(key, 2 * RELATIONS) for key in keys] == [(a, r) for a, r, _ in expected]


@pytest.mark.parametrize("column", [np.arange(6), torch.arange(6)])
def test_inverse_relations(column: np.ndarray) -> None:
    assert inverse_of(column, RELATIONS).tolist() == [3, 4, 5, 0, 1, 2]
    assert inverse_of(inverse_of(column, RELATIONS), RELATIONS).tolist() == [0, 1, 2, 3, 4, 5]


def test_keys_of_int32_do_not_overflow() -> None:
    anchor, relation = np.array([2**31 - 1], np.int32), np.array([7], np.int32)
    expected = (2**31 - 1) * 2000 + 7
    assert query_keys(anchor, relation, 1000).tolist() == [expected]
    assert query_keys(torch.from_numpy(anchor), torch.from_numpy(relation), 1000).tolist() == [expected]
