"""Regularizers on the vectors that a batch uses.

The plain torch form is the definition; ``add_row_penalty`` computes the same of rows, and its gradient, in one compiled
pass where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from torch import Tensor

from distkg.kernels.jit import kernel
from distkg.kernels.threads import for_each_part
from distkg.registry import Registry

_FEWEST = 256  # rows of a part: with fewer, a thread costs more than it saves


class Regularizer(Protocol):
    """Function from non-negative magnitudes [B, D] to a penalty per row [B]."""

    def __call__(self, magnitude: Tensor) -> Tensor: ...


REGULARIZERS: Registry[Regularizer] = Registry("regularizer")


@REGULARIZERS.register("n3")
def nuclear_3_norm(magnitude: Tensor) -> Tensor:
    """Nuclear 3-norm Σ |x|³ (Lacroix et al. 2018, eq. 4, without its 1/3, which the weight absorbs)."""
    return magnitude.pow(3).sum(-1)


@REGULARIZERS.register("l2")
def squared_l2(magnitude: Tensor) -> Tensor:
    """Squared L2 norm Σ |x|²."""
    return magnitude.square().sum(-1)


@REGULARIZERS.register("dura")
def dual_squared_l2(magnitude: Tensor) -> Tensor:
    """Squared L2 norm of a vector of DURA, the duality-induced regularizer (Zhang, Cai and Wang 2020).

    DURA penalises ‖h‖² + ‖t‖² + ‖hR‖² + ‖tRᵀ‖² of a fact with the score ⟨hR, t⟩ = ⟨h, tRᵀ⟩, each part with a weight.
    """
    return squared_l2(magnitude)


PENALISES_PRODUCTS = frozenset({"dura"})
"""Regularizers of h, t, hR and tRᵀ; the others are of h, r and t."""


def add_row_penalty(name: str, parts: int, rows: Tensor, count: Tensor, weight: float, to_rows: Tensor) -> Tensor:
    """Return ``weight`` · Σ_u count_u · penalty(|row_u|), a scalar, and add its gradient to ``to_rows``; on CPU.

    Args:
        name: regularizer that has a compiled form for numbers of so many ``parts``, as ``has_compiled_form`` tells.
        parts: components of a number, which lie in as many equal pieces of a row: 1 for reals, 2 for complex numbers.
        rows: float32 [u, width].
        count: int64 [u].
        to_rows: float32 [u, width].
    """
    run, values = _COMPILED[name, parts], rows.new_zeros(len(rows))
    arrays = [tensor.detach().contiguous().numpy() for tensor in (rows, count)]
    sums, totals = to_rows.numpy(), values.numpy()

    def add(low: int, high: int) -> None:
        part = slice(low, high)
        run(arrays[0][part], arrays[1][part], np.float32(weight), sums[part], totals[part])

    for_each_part(len(rows), add, _FEWEST)
    return values.sum()


def has_compiled_form(name: str, parts: int) -> bool:
    """Return True if ``add_row_penalty`` computes a regularizer of numbers of so many parts."""
    return (name, parts) in _COMPILED


@kernel
def _cubes(rows: np.ndarray, count: np.ndarray, weight: np.float32, to_rows: np.ndarray, values: np.ndarray) -> None:
    for u in range(rows.shape[0]):
        if count[u] == 0:
            continue
        factor, total = weight * np.float32(count[u]), np.float32(0)
        for j in range(rows.shape[1]):
            size = abs(rows[u, j])
            total += size * size * size
            to_rows[u, j] += np.float32(3) * factor * size * rows[u, j]
        values[u] = factor * total


@kernel
def _complex_cubes(
    rows: np.ndarray, count: np.ndarray, weight: np.float32, to_rows: np.ndarray, values: np.ndarray
) -> None:
    half = rows.shape[1] // 2
    for u in range(rows.shape[0]):
        if count[u] == 0:
            continue
        factor, total = weight * np.float32(count[u]), np.float32(0)
        for j in range(half):
            real, imaginary = rows[u, j], rows[u, half + j]
            square = real * real + imaginary * imaginary
            size = np.sqrt(square)
            total += square * size
            slope = np.float32(3) * factor * size
            to_rows[u, j] += slope * real
            to_rows[u, half + j] += slope * imaginary
        values[u] = factor * total


@kernel
def _squares(rows: np.ndarray, count: np.ndarray, weight: np.float32, to_rows: np.ndarray, values: np.ndarray) -> None:
    for u in range(rows.shape[0]):
        if count[u] == 0:
            continue
        factor, total = weight * np.float32(count[u]), np.float32(0)
        for j in range(rows.shape[1]):
            total += rows[u, j] * rows[u, j]
            to_rows[u, j] += np.float32(2) * factor * rows[u, j]
        values[u] = factor * total


_COMPILED: dict[tuple[str, int], Callable[..., None]] = {
    ("n3", 1): _cubes,
    ("n3", 2): _complex_cubes,
    ("l2", 1): _squares,
    ("l2", 2): _squares,
    ("dura", 1): _squares,
    ("dura", 2): _squares,
}
"""Regularizer and parts of a number → kernel."""
