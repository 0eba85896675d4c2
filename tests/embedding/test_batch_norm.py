"""Batch normalisation on batches of every size."""

from __future__ import annotations

import pytest
import torch

from distkg.embedding.scorers.batch_norm import ImageNorm, RowNorm


def test_two_rows_are_normalised_by_their_own_statistics() -> None:
    norm = RowNorm(1).train()
    out = norm(torch.tensor([[1.0], [3.0]]))
    assert out.flatten().tolist() == pytest.approx([-1, 1], abs=1e-4)
    assert norm.running_mean is not None
    assert norm.running_mean.item() == pytest.approx(0.2)  # a tenth of the way from 0 to 2


@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_rows_use_and_keep_the_running_statistics(rows: int) -> None:
    norm = RowNorm(2).train()
    norm.running_mean = torch.tensor([1.0, 2.0])
    norm.running_var = torch.tensor([4.0, 9.0])
    out = norm(torch.tensor([[3.0, 5.0]])[:rows])
    torch.testing.assert_close(out, torch.tensor([[1.0, 1.0]])[:rows], rtol=1e-4, atol=0)
    assert norm.running_mean.tolist() == [1, 2]


def test_images() -> None:
    norm = ImageNorm(2).train()
    norm.running_mean = torch.tensor([1.0, 2.0])
    one = torch.tensor([1.0, 5.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    torch.testing.assert_close(norm(one)[0, :, 0, 0], torch.tensor([0.0, 3.0]), rtol=1e-4, atol=1e-6)
    assert norm(one.new_zeros(0, 2, 3, 3)).shape == (0, 2, 3, 3)
