"""Matrix products with the fastest library that torch includes for the device.

On CPU, torch.mm calls MKL, which leaves AVX-512 unused on processors of other makers than Intel. oneDNN, in the same
wheel, compiles its kernels for the machine at hand. ``benchmarks/rooflines.py`` measures both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from distkg.kernels import cpu

_WIDE = 32  # columns from which oneDNN is faster at sums over rows
_PART = 256  # rows that MKL sums on one thread; with more rows the bits depend on the number of threads
_MANY = 32  # rows of both factors from which MKL's bits do not depend on the number of threads; they do from 5 to 11
_SMALL = 1 << 16  # number of multiplications below which the call itself dominates the time


def product(left: Tensor, right: Tensor) -> Tensor:
    """Compute ``left @ right.T`` of float32 [m, k] × [n, k] -> float32 [m, n]; no autograd.

    bfloat16 gives bfloat16 on any processor: without instructions for it, the product is float32, then rounded.
    """
    if _precision is not torch.float32:
        return _product(left.to(_precision), right.to(_precision)).float()
    return _product(left, right)


def grouped_product(left: Tensor, right: Tensor) -> Tensor:
    """Compute ``left @ right.mT`` of float32 [g, m, k] × [g, n, k] -> float32 [g, m, n]; differentiable.

    In bfloat16 the factors and the result are rounded, as by ``product``, and so are those of the gradients.
    """
    return (left.to(_precision) @ right.to(_precision).mT).float()


def product_plus(left: Tensor, right: Tensor, added: Tensor) -> Tensor:
    """Compute ``added + left @ right.T`` of float32 [m, k], [n, k] and [m, n]; no autograd."""
    if left.device.type == "cpu" and left.is_contiguous() and right.is_contiguous() and cpu.has_onednn():
        return cpu.linear_plus(left, right, added)
    return torch.addmm(added, left, right.T)


def product_over_rows(left: Tensor, right: Tensor) -> Tensor:
    """Compute ``left.T @ right`` of float32 [k, m] × [k, n], k large -> float32 [m, n]; no autograd.

    The result has the same bits with any number of threads.
    """
    if left.device.type != "cpu":
        return left.T @ right
    if right.shape[1] >= _WIDE and cpu.has_onednn():
        return cpu.linear(_dense(left).T, _dense(right).T)
    even = len(left) - len(left) % _PART
    # The wider factor last: four times as fast if the other one has few columns.
    rest = right[even:].T @ left[even:]
    if not even:
        return rest.T
    wide, narrow = (rows[:even].unflatten(0, (-1, _PART)) for rows in (left, right))
    return torch.bmm(narrow.mT, wide).sum(0).add_(rest).T


@contextmanager
def products_in(precision: torch.dtype) -> Iterator[None]:
    """Make ``product`` and ``grouped_product`` round factors and results to ``precision`` within the context; sums stay
    float32."""
    global _precision
    before, _precision = _precision, precision
    try:
        yield
    finally:
        _precision = before


def products_are_exact() -> bool:
    """Return True if ``product`` computes in float32."""
    return _precision is torch.float32


def half_where_fast(device: torch.device | str) -> torch.autocast:
    """Return an autocast context in which torch's linear layers use bfloat16, if that is fast on the device.

    On a CPU with bfloat16 instructions, this is up to five times as fast as float32.
    """
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu" or cpu.has_fast_bfloat16())


def _product(left: Tensor, right: Tensor) -> Tensor:
    if left.device.type != "cpu":
        return left @ right.T
    if left.dtype == torch.bfloat16 and not cpu.has_fast_bfloat16():
        return _product(left.float(), right.float()).bfloat16()
    left, right = _dense(left), _dense(right)
    if left.shape[0] * right.shape[0] * left.shape[1] > _SMALL and _takes_onednn(left, right):
        return cpu.linear(left, right)
    return left @ right.T


def _takes_onednn(left: Tensor, right: Tensor) -> bool:
    if left.dtype == torch.float32 and min(len(left), len(right)) >= _MANY:
        return cpu.multiplies_fastest_with_onednn()
    return left.dtype in (torch.float32, torch.bfloat16) and cpu.has_onednn()


def _dense(matrix: Tensor) -> Tensor:
    """Return a contiguous matrix, transposed or not: oneDNN is slow for a column slice of a wider matrix."""
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()


_precision = torch.float32
