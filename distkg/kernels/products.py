"""Matrix products on the fastest library that torch carries for the device.

On CPU, torch.mm calls MKL, which runs at half speed or less on processors of other makers; oneDNN, in the
same wheel, compiles its kernels for the machine at hand. ``benchmarks/rooflines.py`` measures both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

_WIDE = 32  # columns, from which oneDNN is faster at sums over rows
_SMALL = 1 << 16  # products with fewer multiplications than this are dominated by the call itself


def product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right.T`` of float32 [m, k] × [n, k] -> float32 [m, n]; no autograd."""
    if _precision is not torch.float32:
        return _product(left.to(_precision), right.to(_precision)).float()
    return _product(left, right)


def product_plus(left: Tensor, right: Tensor, added: Tensor) -> Tensor:
    """``added + left @ right.T`` of float32 [m, k], [n, k] and [m, n]; no autograd."""
    if left.device.type == "cpu" and _ONEDNN and left.is_contiguous() and right.is_contiguous():
        linear: Tensor = torch.ops.mkldnn._linear_pointwise.binary(left, added, right, None, "add")
        return linear
    return torch.addmm(added, left, right.T)


def product_over_rows(left: Tensor, right: Tensor) -> Tensor:
    """``left.T @ right`` of float32 [k, m] × [k, n], k large -> float32 [m, n]; no autograd."""
    if left.device.type == "cpu" and _ONEDNN and right.shape[1] >= _WIDE:
        linear: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(left).T, _dense(right).T, None, "none", [], "")
        return linear
    return (right.T @ left).T  # the wider one last: four times as fast where the other has few columns


@contextmanager
def products_in(precision: torch.dtype) -> Iterator[None]:
    """Within, ``product`` rounds its factors and its result to ``precision``; sums inside a product stay float32."""
    global _precision
    before, _precision = _precision, precision
    try:
        yield
    finally:
        _precision = before


def half_where_fast(device: torch.device | str) -> torch.autocast:
    """Within, linear layers of torch multiply in bfloat16, where the machine can; for what needs no more precision.

    On a CPU that can, this is five times as fast as float32.
    """
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu" or _has_bfloat16())


def _product(left: Tensor, right: Tensor) -> Tensor:
    left, right = _dense(left), _dense(right)
    if left.device.type == "cpu" and _ONEDNN and left.shape[0] * right.shape[0] * left.shape[1] > _SMALL:
        linear: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
        return linear
    return left @ right.T


def _dense(matrix: Tensor) -> Tensor:
    """A matrix without gaps, transposed or not: for columns cut out of a wider one oneDNN has only a slow path."""
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()


def _has_onednn() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        probe = torch.ones(2, 2)
        return bool((torch.ops.mkldnn._linear_pointwise(probe, probe, None, "none", [], "") == 2).all())
    except (AttributeError, RuntimeError):
        return False


@cache
def _has_bfloat16() -> bool:
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


_ONEDNN = _has_onednn()
_precision = torch.float32
