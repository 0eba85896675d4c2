"""Complex and quaternion arithmetic on real vectors, as the scorers store them.

A vector of n complex numbers is 2n floats, [real half | imaginary half]; one of n quaternions is 4n floats,
[real | i | j | k]. Every function takes and gives tensors [..., width] of any float dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.kernels.scores.rotation import rotate

TINY = 1e-30  # below any squared modulus that float32 training meets; keeps the square root's gradient finite


def conjugate(vector: Tensor) -> Tensor:
    """Complex conjugate."""
    real, imaginary = vector.chunk(2, dim=-1)
    return torch.cat((real, -imaginary), dim=-1)


def complex_product(left: Tensor, right: Tensor) -> Tensor:
    """Element-wise product of complex numbers."""
    a, b = left.chunk(2, dim=-1)
    c, d = right.chunk(2, dim=-1)
    return torch.cat((a * c - b * d, a * d + b * c), dim=-1)


def reflect(vector: Tensor, phase: Tensor) -> Tensor:
    """Mirror each complex number of ``vector`` [..., 2n] at the line of half its angle in ``phase`` [..., n]."""
    return rotate(conjugate(vector), phase)


def hamilton_product(left: Tensor, right: Tensor) -> Tensor:
    """Element-wise product of quaternions; order matters."""
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
    """Modulus of each number of ``parts`` components: [..., width / parts]; its gradient at 0 is 0."""
    squares = vector.square().unflatten(-1, (parts, -1)).sum(dim=-2)
    return squares.clamp_min(TINY).sqrt()
