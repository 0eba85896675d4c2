"""Rows that a batch takes, and the gradient of all that was taken."""

from __future__ import annotations

import torch

from distkg.embedding.steps.step import GatheredRows, gradient_of


def test_rows_taken_by_several_indices_share_one_gradient() -> None:
    rows = torch.tensor([[1.0], [2.0], [3.0]])
    first, second = GatheredRows(rows, torch.tensor([0, 1])), GatheredRows(rows, torch.tensor([1, 1, 2]))
    none, unused = GatheredRows(rows, torch.empty(0, dtype=torch.int64)), GatheredRows(rows, torch.tensor([0]))
    everything = GatheredRows(rows)
    assert (first.rows.flatten().tolist(), second.rows.flatten().tolist()) == ([1.0, 2.0], [2.0, 2.0, 3.0])
    weighted = (second.rows * torch.tensor([[1.0], [2.0], [4.0]])).sum()
    (10 * first.rows.sum() + weighted + none.rows.sum() + 100 * everything.rows.sum()).backward()
    total = gradient_of(rows, first, second, none, unused, everything)
    assert total.flatten().tolist() == [110.0, 113.0, 104.0]
    assert not rows.requires_grad
