"""Known relations by pair, against sets."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.data.store.known_relations import KnownRelations

Fact = tuple[int, int, int]


@settings(max_examples=60, deadline=None)
@given(
    facts=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 4)), max_size=25),
    asked=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8),
    only_asked=st.booleans(),
)
def test_a_mask_names_the_relations_between_each_pair(
    facts: list[Fact], asked: list[tuple[int, int]], only_asked: bool
) -> None:
    pairs, rows = np.array(asked), np.array(facts, np.int32).reshape(-1, 3)
    known = KnownRelations.of([rows[:7], rows[7:]], 5, 4, pairs if only_asked else None)
    expected = [[(h, r, t) in set(facts) for r in range(4)] for h, t in asked]
    assert known.mask(pairs).tolist() == expected
    if only_asked:
        assert len(known.keys) == sum((h, t) in set(asked) for h, _, t in facts)
