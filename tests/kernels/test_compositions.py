"""Rows composed with operands, every one with every other, beside plain torch in double precision."""

from __future__ import annotations

import pytest
import torch

from distkg.kernels.compositions import COMPLEX_PRODUCT, PRODUCT, SUM, Composition
from distkg.kernels.threads import computing_threads


def test_by_hand() -> None:
    rows, operands = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0]])
    assert SUM.cross(rows, operands).tolist() == [[[6, 8]], [[8, 10]]]
    assert PRODUCT.cross(rows, operands).tolist() == [[[5, 12]], [[15, 24]]]
    assert COMPLEX_PRODUCT.cross(rows, operands).tolist() == [[[-7, 16]], [[-9, 38]]]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("width", [2, 32, 46])
@pytest.mark.parametrize("composition", [SUM, PRODUCT, COMPLEX_PRODUCT], ids=["sum", "product", "complex"])
def test_gradients_of_every_row_with_every_operand(composition: Composition, width: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(width)
    rows, operands = (torch.randn(size, width, generator=generator, requires_grad=True) for size in (40, 9))
    weights = torch.randn(40, 9, width, generator=generator)
    exact = [each.detach().double().requires_grad_() for each in (rows, operands)]
    expected = composition.cross(*exact)
    (expected * weights).sum().backward()
    with computing_threads(threads):
        found = composition.cross(rows, operands)
        (found * weights).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip((rows, operands), exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-4)
