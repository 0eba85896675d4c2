"""Complex and quaternion arithmetic against Python's own and against the quaternion group."""

from __future__ import annotations

import cmath
import math

import pytest
import torch

from distkg.embedding.scorers.algebra import conjugate, hamilton_product, moduli, reflect, rotate
from distkg.kernels.compositions import complex_product

# (1+2i, 3-i) and (-2+.5i, 4i), halves apart
LEFT, RIGHT = torch.tensor([[1.0, 3.0, 2.0, -1.0]]), torch.tensor([[-2.0, 0.0, 0.5, 4.0]])


def test_complex_product() -> None:
    # (1+2i)(-2+.5i) = -3 - 3.5i; (3-i)·4i = 4 + 12i
    torch.testing.assert_close(complex_product(LEFT, RIGHT), torch.tensor([[-3.0, 4.0, -3.5, 12.0]]))


def test_conjugate() -> None:
    assert conjugate(LEFT).tolist() == [[1, 3, -2, 1]]


def test_rotate_is_multiplication_by_a_phase() -> None:
    angles = [0.3, -2.0]
    turned = rotate(LEFT, torch.tensor([angles])).tolist()[0]
    expected = [(1 + 2j) * cmath.exp(1j * angles[0]), (3 - 1j) * cmath.exp(1j * angles[1])]
    assert turned == pytest.approx([expected[0].real, expected[1].real, expected[0].imag, expected[1].imag])


def test_reflect_mirrors_at_a_line() -> None:
    # At the x axis, at the diagonal, and at the line of 30°: (1, 0) there becomes (½, √¾).
    vector = torch.tensor([[1.0, 3.0, 1.0, 2.0, -1.0, 0.0]])
    mirrored = reflect(vector, torch.tensor([[0.0, math.pi / 2, math.pi / 3]])).tolist()[0]
    assert mirrored == pytest.approx([1, -1, 0.5, -2, 3, math.sqrt(0.75)], abs=1e-6)


UNITS = {"1": [1, 0, 0, 0], "i": [0, 1, 0, 0], "j": [0, 0, 1, 0], "k": [0, 0, 0, 1]}


PRODUCTS = "1 k k, i j k, j k i, k i j, j i -k, k j -i, i k -j, i i -1, j j -1, k k -1"


@pytest.mark.parametrize("line", PRODUCTS.split(", "))
def test_hamilton_product_of_units(line: str) -> None:
    left, right, expected = line.split()
    product = hamilton_product(torch.tensor([UNITS[left]]), torch.tensor([UNITS[right]]))
    sign = -1 if expected.startswith("-") else 1
    assert product.tolist() == [[sign * part for part in UNITS[expected[-1]]]]


def test_moduli() -> None:
    assert moduli(torch.tensor([[3.0, 0.0, 4.0, -2.0]])).tolist() == [[5, 2]]
    assert moduli(torch.tensor([[1.0, 2.0, 4.0, 10.0]]), parts=4).tolist() == [[11]]


def test_moduli_have_gradient_zero_at_zero() -> None:
    zero = torch.zeros(1, 4, requires_grad=True)
    moduli(zero).sum().backward()
    assert zero.grad is not None
    assert zero.grad.tolist() == [[0, 0, 0, 0]]
    assert math.isfinite(moduli(zero).sum().item())
