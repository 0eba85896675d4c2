"""Compiled rotation against complex multiplication in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distkg.kernels.scores.rotation import reference_rotate, rotate


def exact(vector: Tensor, phase: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Result and gradients, by torch's complex numbers in float64."""
    vector, phase = vector.detach().double().requires_grad_(), phase.detach().double().requires_grad_()
    real, imaginary = vector.chunk(2, -1)
    turned = torch.complex(real, imaginary) * torch.exp(1j * phase)
    out = torch.cat([turned.real, turned.imag], -1)
    return out.detach(), *torch.autograd.grad(out, (vector, phase), gradient.double())


def compiled(vector: Tensor, phase: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out = rotate(vector.requires_grad_(), phase.requires_grad_())
    assert type(out.grad_fn).__name__ == "_RotateBackward"
    return out.detach(), *torch.autograd.grad(out, (vector, phase), gradient)


def assert_equal(vector: Tensor, phase: Tensor, gradient: Tensor, tolerance: float = 2e-6) -> None:
    for mine, theirs in zip(compiled(vector, phase, gradient), exact(vector, phase, gradient), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance)


@given(st.integers(1, 5), st.integers(1, 40), st.floats(0.1, 30))
def test_result_and_gradients(rows: int, numbers: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(rows * 100 + numbers)
    vector, gradient = (torch.randn(rows, 2 * numbers, generator=generator) for _ in range(2))
    assert_equal(vector, spread * torch.randn(rows, numbers, generator=generator), gradient)


def test_known_turns() -> None:
    vector = torch.tensor([[3.0, 4.0]] * 5)
    phase = torch.tensor([[0.0], [math.pi / 2], [math.pi], [-math.pi / 2], [20 * math.pi]])
    expected = [[3, 4], [-4, 3], [-3, -4], [4, -3], [3, 4]]
    torch.testing.assert_close(rotate(vector, phase), torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-5)


def test_large_angles_keep_their_accuracy() -> None:
    phase = torch.linspace(-1000, 1000, 4001)[:, None]
    vector = torch.tensor([[1.0, 0.0]]).repeat(4001, 1)
    assert_equal(vector, phase, torch.ones(4001, 2), 5e-7)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_any_leading_shape_and_gaps(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(*shape, 15, generator=generator)
    assert_equal(wide[..., :8].detach(), wide[..., 8:12].detach(), torch.randn(*shape, 8, generator=generator))


def test_other_dtypes_and_shapes_that_spread_go_the_plain_way() -> None:
    vector, phase = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(rotate(vector, phase), reference_rotate(vector, phase))
    one = rotate(torch.ones(5, 2), torch.zeros(1, 1))
    assert torch.equal(one, torch.ones(5, 2))


def test_nan_stays() -> None:
    assert bool(rotate(torch.tensor([[1.0, 2.0]]), torch.tensor([[float("nan")]])).isnan().all())
