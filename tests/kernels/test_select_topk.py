"""The best entities kept, against sorting, compiled and plain."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.kernels.select_topk import Best, best_of, keep_best, reference_keep_best

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("keep", [keep_best, reference_keep_best])


@BOTH
def test_kept_written_by_hand(keep) -> None:
    best = Best.none_yet(2, 3, CPU)
    keep(torch.tensor([[1.0, 5.0, 5.0, -2.0]]), 10, 1, best)
    keep(torch.tensor([[5.0, 9.0]]), 14, 1, best)
    assert best.entities.tolist() == [[-1, -1, -1], [15, 11, 12]]
    assert best.scores.tolist() == [[-torch.inf] * 3, [9.0, 5.0, 5.0]]


@BOTH
def test_hidden_and_broken_scores_never_enter(keep) -> None:
    best = Best.none_yet(1, 3, CPU)
    keep(torch.tensor([[-torch.inf, torch.nan, -3.0]]), 0, 0, best)
    assert best.entities.tolist() == [[2, -1, -1]]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), width=st.integers(1, 60), top=st.integers(1, 70), cut=st.integers(1, 60))
def test_both_keep_what_sorting_puts_first(seed: int, width: int, top: int, cut: int) -> None:
    scores = torch.randint(-4, 5, (5, width), generator=torch.Generator().manual_seed(seed)).float()
    expected = [sorted(range(width), key=lambda e, row=row: (-row[e], e))[:top] for row in scores.tolist()]
    for keep in (keep_best, reference_keep_best):
        best = Best.none_yet(5, top, CPU)
        for low in range(0, width, cut):
            keep(scores[:, low : low + cut].contiguous(), low, 0, best)
        assert [[e for e in row if e >= 0] for row in best.entities.tolist()] == expected


def test_merging_sorts_zeros_of_both_signs_as_one_number() -> None:
    scores = torch.tensor([[-0.0, 0.0, -2.5, 1e-30, -1e-30, 3.0, -torch.inf]])
    merged = best_of(scores, torch.tensor([[4, 2, 9, 1, 0, 7, 5]], dtype=torch.int32), 7)
    assert merged.entities.tolist() == [[7, 1, 2, 4, 0, 9, -1]]
    assert merged.scores[0, [0, 5]].tolist() == [3.0, -2.5]
