"""The update of a layer in blocks equals the plain one, forward and backward, whatever the number of rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distkg.kernels.message_passing.layer_update import layer_update, reference_layer_update


def case(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    width = shape[-1]
    sizes = shape, shape, (width, 2 * width), (width,), (width,), (width,)
    return [torch.randn(*size, generator=generator, dtype=dtype).requires_grad_() for size in sizes]


def test_by_hand() -> None:
    states, gathered = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])
    weight = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    zero = torch.zeros(2)
    # W [x, a] = (4, 7), normalised (-1, 1) up to ε; 2 · (-1, 1) + 1 = (-1, 3), of which ReLU leaves (0, 3).
    found = layer_update(states, gathered, weight, zero, torch.full((2,), 2.0), torch.ones(2))
    torch.testing.assert_close(found, torch.tensor([[1.0, 5.0]]), atol=1e-4, rtol=0)
    alone = layer_update(states, gathered, weight, zero, torch.full((2,), 2.0), torch.ones(2), residual=False)
    torch.testing.assert_close(alone, torch.tensor([[0.0, 3.0]]), atol=1e-4, rtol=0)


# One row, several parts of a block, several blocks, and widths that fill no vector register.
@pytest.mark.parametrize("shape", [(1, 1, 8), (3, 400, 5), (2, 5000, 33), (9000, 64)])
@pytest.mark.parametrize("residual", [True, False])
def test_equals_the_plain_one(shape: tuple[int, ...], residual: bool) -> None:
    exact = [part.detach().double().requires_grad_() for part in case(*shape)]
    expected, own = reference_layer_update(*exact, residual), case(*shape)
    found = layer_update(*own, residual)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)
    back = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(found, own, back)
    for gradient, right in zip(gradients, torch.autograd.grad(expected, exact, back.double()), strict=True):
        assert (gradient.double() - right).abs().max() < 1e-5 * right.abs().max() + 1e-5


def test_what_is_gathered_may_be_wider_and_lie_apart() -> None:
    own = case(2, 5000, 8)
    own[1] = torch.randn(2, 5000, 13, generator=torch.Generator().manual_seed(2)).requires_grad_()
    own[2] = torch.randn(8, 21, generator=torch.Generator().manual_seed(3)).requires_grad_()
    expected = reference_layer_update(*own)
    right = torch.autograd.grad(expected.square().sum(), own)
    for gathered in (own[1], own[1].split([10, 3], dim=-1)):
        found = layer_update(own[0], gathered, *own[2:])
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
        for gradient, exact in zip(torch.autograd.grad(found.square().sum(), own), right, strict=True):
            assert (gradient - exact).abs().max() < 1e-5 * exact.abs().max() + 1e-4


@pytest.mark.parametrize("apart", [False, True])
def test_the_last_of_what_is_gathered_may_be_multiplied_first(apart: bool) -> None:
    own = case(2, 5000, 8)
    generator = torch.Generator().manual_seed(2)
    factor = torch.randn(2, 5000, 3, generator=generator).requires_grad_()

    def parts(of: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
        return of[1].split([4, 4], dim=-1) if apart else of[1]

    found = layer_update(own[0], parts(own), *own[2:], factor=factor)
    exact = [part.detach().double().requires_grad_() for part in [*own, factor]]
    ones = torch.ones(2, 5000, 5, dtype=torch.float64)
    by_hand = [exact[0], exact[1] * torch.cat([ones, exact[-1]], dim=-1), *exact[2:-1]]
    for expected in (reference_layer_update(*by_hand), reference_layer_update(*exact[:-1], factor=exact[-1])):
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)
    back = torch.randn(2, 5000, 8, generator=generator)
    gradients = torch.autograd.grad(found, [*own, factor], back)
    for gradient, right in zip(gradients, torch.autograd.grad(expected, exact, back.double()), strict=True):
        assert (gradient.double() - right).abs().max() < 1e-5 * right.abs().max() + 1e-5


def test_threads_change_no_bit() -> None:
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        own = case(2, 3000, 16)
        found = layer_update(*own)
        results.append([found.detach(), *torch.autograd.grad(found.square().sum(), own)])
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_without_gradients_nothing_else_changes() -> None:
    own = case(2, 700, 16)
    with torch.no_grad():
        found = layer_update(*own)
    assert torch.equal(found, layer_update(*own))
