"""Penalties against numbers written by hand."""

from __future__ import annotations

import pytest
import torch

from distkg.objectives import REGULARIZERS


@pytest.mark.parametrize(
    ("name", "expected"), [("n3", [36.0, 0.0, 0.125]), ("l2", [14.0, 0.0, 0.25]), ("dura", [14.0, 0.0, 0.25])]
)
def test_penalties_of_rows(name: str, expected: list[float]) -> None:
    magnitude = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    assert REGULARIZERS[name](magnitude).tolist() == expected


@pytest.mark.parametrize(("name", "expected"), [("n3", [3.0, 12.0, 0.0]), ("l2", [2.0, 4.0, 0.0])])
def test_gradients_of_penalties(name: str, expected: list[float]) -> None:
    magnitude = torch.tensor([[1.0, 2.0, 0.0]], requires_grad=True)
    REGULARIZERS[name](magnitude).sum().backward()
    assert magnitude.grad is not None
    assert magnitude.grad.flatten().tolist() == expected
