"""Complex and quaternion arithmetic on real vectors, in the layout of the scorers.

A vector of n complex numbers is 2n floats, [real half | imaginary half]; one of n quaternions is 4n floats,
[real | i | j | k]. Every function maps tensors [..., width] of any float dtype to such tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.kernels.scores.rotation import rotate

TINY = 1e-30  # below any squared modulus in float32 training; keeps the gradient of the square root finite


def conjugate(vector: Tensor) -> Tensor:
    """Return the complex conjugate."""
    real, imaginary = vector.chunk(2, dim=-1)
    return torch.cat((real, -imaginary), dim=-1)


def reflect(vector: Tensor, phase: Tensor) -> Tensor:
    """Reflect each complex number of ``vector`` [..., 2n] at the line whose angle is half of ``phase`` [..., n]."""
    return rotate(conjugate(vector), phase)


def hamilton_product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply quaternions element-wise (non-commutative)."""
    a, b, c, d = left.chunk(4, dim=-1)
    w, x, y, z = right.chunk(4, dim=-1)
    parts = (
        a * w - b * x - c * y - d * z,
        a * x + b * w + c * z - d * y,
        a * y - b * z + c * w + d * x,
        a * z + b * y - c * x + d * w,
    )
    return torch.cat(parts, dim=-1)


def moduli(vector: Tensor, parts: int = 2) -> Tensor:
    """Return the modulus of each number of ``parts`` components: [..., width / parts]; its gradient at 0 is 0."""
    squares = vector.square().unflatten(-1, (parts, -1)).sum(dim=-2)
    return squares.clamp_min(TINY).sqrt()
