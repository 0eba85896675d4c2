"""Compiled comparisons beside their plain references: across cache blocks, and where a derivative has a kink."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from distkg.kernels.scores import pairwise

NAMES = ["dot", "l1", "scaled_l1", "modulus"]


def kernels(name: str) -> tuple[Callable[..., None], Callable[..., None], Callable[[Tensor, Tensor], Tensor]]:
    return (
        getattr(pairwise, f"{name}_scores"),
        getattr(pairwise, f"{name}_gradients"),
        getattr(pairwise, f"reference_{name}"),
    )


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_more_rows_than_a_cache_block_holds(name: str, own: bool) -> None:
    scores, gradients, reference = kernels(name)
    generator = torch.Generator().manual_seed(3)
    count = 2 * pairwise._BLOCK + 45
    query = torch.randn(3, 20 if name == "scaled_l1" else 10, generator=generator)
    rows = torch.randn(400, 10, generator=generator)
    index = torch.randint(400, (3 if own else 1, count), generator=generator)
    grad = torch.randn(3, count, generator=generator)

    q, c = query.clone().requires_grad_(), rows.clone().requires_grad_()
    expected = reference(q[:, None], c[index])
    expected.backward(grad)

    out, to_query, to_rows = torch.empty(3, count), torch.zeros_like(query), torch.zeros_like(rows)
    scores(query.numpy(), rows.numpy(), index.numpy(), out.numpy())
    gradients(*(tensor.numpy() for tensor in (grad, query, rows, index, to_query, to_rows)))
    torch.testing.assert_close(out, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(to_query, q.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(to_rows, c.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_add_to_what_is_there(name: str) -> None:
    _, gradients, _ = kernels(name)
    query = np.ones((1, 4 if name == "scaled_l1" else 2), np.float32)
    rows, index = np.zeros((1, 2), np.float32), np.zeros((1, 1), np.int64)
    once, twice = (np.zeros_like(query), np.zeros_like(rows)), (np.zeros_like(query), np.zeros_like(rows))
    grad = np.full((1, 1), 0.25, np.float32)
    gradients(grad, query, rows, index, *once)
    gradients(grad, query, rows, index, *twice)
    gradients(grad, query, rows, index, *twice)
    for single, double in zip(once, twice, strict=True):
        np.testing.assert_array_equal(double, 2 * single)
    assert once[1].any()


@pytest.mark.parametrize("name", ["l1", "modulus"])
def test_the_derivative_at_a_kink_is_zero(name: str) -> None:
    _, gradients, reference = kernels(name)
    query, rows, index = np.ones((1, 4), np.float32), np.ones((1, 4), np.float32), np.zeros((1, 1), np.int64)
    to_query, to_rows = np.zeros_like(query), np.zeros_like(rows)
    gradients(np.ones((1, 1), np.float32), query, rows, index, to_query, to_rows)
    assert not to_query.any()
    assert not to_rows.any()
    point = torch.ones(1, 4, requires_grad=True)
    reference(point, torch.ones(1, 4)).backward()
    assert point.grad is not None
    assert not point.grad.any()


def test_references_against_numbers_written_by_hand() -> None:
    query, candidate = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 2.0])
    assert pairwise.reference_dot(query, candidate).item() == 1.0
    assert pairwise.reference_l1(query, candidate).item() == -5.0
    assert pairwise.reference_scaled_l1(torch.tensor([3.0, -1.0, 2.0, -2.0]), candidate).item() == -4.0
    # 3 - i and 1 + 2i: |2 - 3i|
    assert pairwise.reference_modulus(query, candidate).item() == pytest.approx(-3.6055513)
