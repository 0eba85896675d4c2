"""Marks of known facts against a set of triples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distkg.data.store.known_answers import KnownAnswers
from distkg.negatives import known_facts

ENTITIES, RELATIONS = 6, 2

triples = st.lists(
    st.tuples(st.integers(0, ENTITIES - 1), st.integers(0, RELATIONS - 1), st.integers(0, ENTITIES - 1)), max_size=25
)


def known_of(facts: list[tuple[int, int, int]]) -> KnownAnswers:
    return KnownAnswers.from_triples(np.array(facts, dtype=np.int32).reshape(-1, 3), RELATIONS)


def is_fact(facts: set[tuple[int, int, int]], anchor: int, relation: int, candidate: int) -> bool:
    if relation < RELATIONS:
        return (anchor, relation, candidate) in facts
    return (candidate, relation - RELATIONS, anchor) in facts


def test_marks_written_by_hand() -> None:
    known = known_of([(0, 0, 3), (0, 0, 5), (2, 1, 0)])
    anchor, relation = torch.tensor([0, 0, 5, 1]), torch.tensor([0, 3, 2, 0])  # 2 and 3 ask for heads
    negatives = torch.tensor([[5, 4, 3], [2, 0, 3], [0, 5, 0], [3, 5, 0]])
    marks = known_facts(known, anchor, relation, negatives, per_row=1)
    assert marks.dtype == torch.bool
    assert marks.int().tolist() == [[1, 0, 1], [1, 0, 0], [1, 0, 1], [0, 0, 0]]


def test_queries_that_share_a_row_are_marked_apart() -> None:
    known = known_of([(0, 0, 3), (1, 0, 4)])
    marks = known_facts(
        known, torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]), torch.tensor([[3, 4], [3, 3]]), per_row=2
    )
    assert marks.int().tolist() == [[1, 0], [0, 1], [0, 0]]


@given(facts=triples, seed=st.integers(0, 1000), queries=st.integers(1, 9), per_row=st.integers(1, 4))
def test_marks_are_those_of_a_set_of_triples(
    facts: list[tuple[int, int, int]], seed: int, queries: int, per_row: int
) -> None:
    rng = np.random.default_rng(seed)
    anchor, relation = rng.integers(0, ENTITIES, queries), rng.integers(0, 2 * RELATIONS, queries)
    negatives = rng.integers(0, ENTITIES, (-(-queries // per_row), 5))
    marks = known_facts(
        known_of(facts), torch.from_numpy(anchor), torch.from_numpy(relation), torch.from_numpy(negatives), per_row
    )
    expected = [
        [is_fact(set(facts), anchor[i], relation[i], candidate) for candidate in negatives[i // per_row]]
        for i in range(queries)
    ]
    assert marks.tolist() == expected


@pytest.mark.parametrize("facts", [[], [(0, 0, 1)]])
def test_no_queries_give_no_marks(facts: list[tuple[int, int, int]]) -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert known_facts(known_of(facts), none, none, torch.zeros(0, 5, dtype=torch.int64), 1).shape == (0, 5)
