"""The most frequent tokens, against counting by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distkg.data.tokens.token_choice import most_frequent


def test_most_frequent_first_then_smaller_then_in_order() -> None:
    # Token 9 three times, 4 twice, 7 and 2 once: of the last two the smaller stays.
    assert most_frequent([0] * 7, [9, 7, 9, 4, 2, 9, 4], 1, most=3).tolist() == [[2, 4, 9]]


def test_entities_without_tokens_have_none() -> None:
    assert most_frequent([], [], 2, most=2).tolist() == [[-1, -1], [-1, -1]]
    assert most_frequent([1], [0], 3, most=2).tolist() == [[-1, -1], [0, -1], [-1, -1]]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=60),
    st.integers(1, 5),
)
def test_as_counted_by_hand(occurrences: list[tuple[int, int]], most: int) -> None:
    entity, token = np.array(occurrences, np.int64).reshape(-1, 2).T
    found = most_frequent(entity, token, 5, most)
    assert found.dtype == np.int32
    for one in range(5):
        counts = Counter(t for e, t in occurrences if e == one)
        best = sorted(counts, key=lambda t: (-counts[t], t))[:most]
        assert found[one].tolist() == sorted(best) + [-1] * (most - len(best))
