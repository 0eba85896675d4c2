"""Penalties of rows in one compiled pass: numbers by hand, and gradients beside autograd in double precision."""

from __future__ import annotations

import pytest
import torch

from distkg.embedding.scorers.algebra import moduli
from distkg.kernels.threads import computing_threads
from distkg.objectives import REGULARIZERS, add_row_penalty, has_compiled_form


@pytest.mark.parametrize(
    ("name", "parts", "value", "gradient"),
    [
        # Row [3, 4] once and row [-1, 2] not at all, weight 1/2: as reals, and as the complex number 3 + 4i.
        ("n3", 1, 45.5, [13.5, 24.0]),
        ("n3", 2, 62.5, [22.5, 30.0]),
        ("l2", 1, 12.5, [3.0, 4.0]),
        ("l2", 2, 12.5, [3.0, 4.0]),
    ],
)
def test_by_hand(name: str, parts: int, value: float, gradient: list[float]) -> None:
    to_rows = torch.ones(2, 2)
    found = add_row_penalty(name, parts, torch.tensor([[3.0, 4.0], [-1.0, 2.0]]), torch.tensor([1, 0]), 0.5, to_rows)
    assert found.item() == pytest.approx(value)
    assert to_rows.tolist() == [[1 + gradient[0], 1 + gradient[1]], [1, 1]]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", ["n3", "l2", "dura"])
def test_beside_autograd(name: str, parts: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(4)
    rows, count = torch.randn(900, 22, generator=generator), torch.randint(4, (900,), generator=generator)
    rows[7] = 0  # the derivative of a modulus at 0 is 0
    leaf = rows.double().requires_grad_()
    expected = 0.25 * (count * REGULARIZERS[name](leaf.abs() if parts == 1 else moduli(leaf))).sum()
    expected.backward()
    assert leaf.grad is not None
    to_rows = torch.zeros_like(rows)
    with computing_threads(threads):
        found = add_row_penalty(name, parts, rows, count, 0.25, to_rows)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(to_rows.double(), leaf.grad, rtol=1e-5, atol=1e-6)


def test_others_have_none() -> None:
    assert not has_compiled_form("n3", 4)
    assert not has_compiled_form("none", 1)
