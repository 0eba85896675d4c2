"""Rows of states beside small maps of themselves equal the plain ones, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distkg.kernels.message_passing.concatenated_projections import beside, reference_beside


def case(rows: tuple[int, ...], width: int, narrow: int, factors: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (*rows, width), (narrow, width), (narrow,), *([(*rows, narrow)] * factors)
    return [torch.randn(*size, generator=generator).requires_grad_() for size in sizes]


def test_by_hand() -> None:
    states, weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]]), torch.tensor([-3.0])
    # s = 3 + 10 - 3 = 10
    found = beside(states, weight, bias, [torch.tensor([[0.5]]), torch.tensor([[2.0]])], 6)
    assert found.tolist() == [[1.0, 2.0, 5.0, 0.0, 0.0, 20.0]]
    assert beside(states, weight, bias, [torch.tensor([[0.5]])], 3).tolist() == [[1.0, 2.0, 5.0]]


@pytest.mark.parametrize(("rows", "width", "narrow", "factors", "lacking"), [
    ((1,), 8, 4, 1, 0),
    ((3, 400), 64, 8, 3, 8),
    ((2, 5), 7, 3, 2, 1),
])  # fmt: skip
def test_equals_the_plain_one(rows: tuple[int, ...], width: int, narrow: int, factors: int, lacking: int) -> None:
    whole = width + narrow * factors + lacking
    own = case(rows, width, narrow, factors)
    exact = [part.detach().double().requires_grad_() for part in own]
    expected = reference_beside(*exact[:3], exact[3:], whole)
    found = beside(*own[:3], own[3:], whole)
    assert found.shape == (*rows, whole)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    back = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(found, own, back)
    for gradient, right in zip(gradients, torch.autograd.grad(expected, exact, back.double()), strict=True):
        assert (gradient.double() - right).abs().max() < 1e-5 * right.abs().max() + 1e-5


def test_on_any_number_of_threads_bits_are_the_same() -> None:
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        own = case((2, 3000), 64, 8, 2)
        rows = beside(*own[:3], own[3:], 80)
        found.append([rows, *torch.autograd.grad(rows.square().sum(), [own[0], *own[3:]])])
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
