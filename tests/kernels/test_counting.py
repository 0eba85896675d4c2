"""The compiled count against the plain one, and both against numbers written by hand."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.kernels.counting import Tally, count_block, reference_count_block

BOTH = pytest.mark.parametrize("count", [count_block, reference_count_block])


def tally_of(known: list[list[int]], answers: list[list[int]], thresholds: list[float]) -> Tally:
    lengths = np.cumsum([0] + [len(part) for part in known])
    tally = Tally.start(
        np.array(list(chain(*known)), np.int32),
        lengths[:-1].astype(np.int64),
        lengths[1:].astype(np.int64),
        np.cumsum([0] + [len(part) for part in answers]).astype(np.int64),
        np.array(list(chain(*answers)), np.int32),
    )
    tally.thresholds[:] = thresholds
    return tally


@BOTH
def test_counts_written_by_hand(count) -> None:
    # Entities 10 … 15. Query 0: answer 11; 13 is known. Query 1: answers 10 and 14, of which 14 is known.
    scores = torch.tensor([[5.0, 2.0, 2.0, 9.0, 1.0, 2.0], [3.0, 4.0, 3.0, 1.0, 1.0, 0.0]])
    tally = tally_of([[13], [14]], [[11], [10, 14]], [2.0, 3.0, 1.0])
    count(scores, 10, 0, tally)
    assert tally.greater.tolist() == [1, 1, 3]
    assert tally.equal.tolist() == [2, 1, 1]
    assert tally.answer_scores.tolist() == [2.0, 3.0, 1.0]
    assert tally.broken.tolist() == [0, 0]


@BOTH
def test_blocks_add_up_and_see_only_their_own_entities(count) -> None:
    scores = torch.tensor([[1.0, 7.0, 7.0, 7.0, 9.0, 0.0]])
    tally = tally_of([[0, 3, 4]], [[2]], [7.0])
    count(scores[:, :2].clone(), 0, 0, tally)
    assert tally.answer_scores.tolist() == [0.0]
    count(scores[:, 2:5].clone(), 2, 0, tally)
    count(scores[:, 5:].clone(), 5, 0, tally)
    assert (tally.greater.tolist(), tally.equal.tolist(), tally.answer_scores.tolist()) == ([0], [1], [7.0])


@BOTH
def test_rows_after_the_first_query_count_into_their_own_answers(count) -> None:
    tally = tally_of([[], [], []], [[0], [1], [0]], [1.0, 1.0, 1.0])
    count(torch.tensor([[2.0, 1.0]]), 0, 1, tally)
    assert tally.greater.tolist() == [0, 1, 0]


@BOTH
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_every_score_that_is_not_finite_is_seen_even_of_a_known_entity(count, value: float) -> None:
    tally = tally_of([[1]], [[0]], [0.0])
    count(torch.tensor([[0.0, value, 1.0, value]]), 0, 0, tally)
    assert tally.broken.tolist() == [2]


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 100_000), rows=st.integers(1, 6), width=st.integers(1, 70), low=st.integers(0, 40))
def test_compiled_and_plain_count_the_same(seed: int, rows: int, width: int, low: int) -> None:
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(-3, 4, (rows, width)).astype(np.float32))
    known = [sorted(set(rng.integers(0, 120, rng.integers(0, 20)).tolist())) for _ in range(rows)]
    answers = [rng.integers(0, 120, rng.integers(1, 4)).tolist() for _ in range(rows)]
    thresholds = rng.integers(-3, 4, sum(map(len, answers))).astype(float).tolist()
    compiled, plain = tally_of(known, answers, thresholds), tally_of(known, answers, thresholds)
    count_block(scores.clone(), low, 0, compiled)
    reference_count_block(scores.clone(), low, 0, plain)
    for name in ("greater", "equal", "answer_scores", "broken"):
        np.testing.assert_array_equal(getattr(compiled, name), getattr(plain, name), err_msg=name)


def test_the_plain_form_takes_more_answers_than_it_compares_at_once() -> None:
    answers = list(range(700))
    tally = tally_of([[]], [answers], [float(a) for a in answers])
    reference_count_block(torch.arange(700.0)[None], 0, 0, tally)
    assert tally.greater.tolist() == list(range(699, -1, -1))
    assert not tally.equal.any()
