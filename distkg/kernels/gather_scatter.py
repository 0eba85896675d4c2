"""Gather and scatter-add of rows by index, with gradients.

The next rows are prefetched: they lie at random places, which the processor does not foresee.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu, part_of_kernel
from distkg.kernels.threads import for_each_part
from distkg.kernels.vectors.prefetch import AHEAD, prefetch_row
from distkg.kernels.vectors.simd import LANES, load, store

_FEWEST = 256  # rows of a part: with fewer, a thread costs more than it saves


def add_rows(target: Tensor, index: Tensor, source: Tensor) -> None:
    """Scatter-add rows, ``target[index[i]] += source[i]``; duplicates are summed.

    Args:
        target: float32 [n, d], changed in place.
        index: int64 [k], values in [0, n).
        source: float32 [k, d].
    """
    if on_cpu(target, index, source) and target.dtype == source.dtype == torch.float32 and target.is_contiguous():
        arrays = target.numpy(), index.numpy(), source.contiguous().numpy()
        fewest = max(1, _FEWEST * len(target) // max(len(index), 1))
        for_each_part(len(target), lambda low, high: _add_rows(*arrays, low, high), fewest)
    else:
        target.index_add_(0, index, source.to(target.dtype))


@part_of_kernel
def copy_row(target, row, source, i):  # type: ignore[no-untyped-def]
    """Copy row i of ``source``, as far as either matrix is wide."""
    width = min(target.shape[1], source.shape[1])
    whole = width // LANES * LANES
    for j in range(0, whole, LANES):
        store(target, row, j, load(source, i, j))
    for j in range(whole, width):
        target[row, j] = source[i, j]


@part_of_kernel
def add_row(target, row, source, i):  # type: ignore[no-untyped-def]
    """Add row i of ``source``, of equal width."""
    width = target.shape[1]
    whole = width // LANES * LANES
    for j in range(0, whole, LANES):
        store(target, row, j, load(target, row, j) + load(source, i, j))
    for j in range(whole, width):
        target[row, j] += source[i, j]


@kernel
def _add_rows(target: np.ndarray, index: np.ndarray, source: np.ndarray, low: int, high: int) -> None:
    """Add to the rows low … high - 1 of the target."""
    for i in range(index.shape[0]):
        if i + AHEAD < index.shape[0] and low <= index[i + AHEAD] < high:
            prefetch_row(target, index[i + AHEAD])
        if low <= index[i] < high:
            add_row(target, index[i], source, i)


def sum_rows(parts: Sequence[tuple[Tensor, Tensor]], rows: int) -> Tensor:
    """Sum float32 rows by index: [rows, d], in which row r is the sum of all ``source[i]`` with ``index[i] == r``.

    Args:
        parts: pairs of index int64 [k] and source [k, d]; at least one.
    """
    first = parts[0][1]
    if not on_cpu(*(tensor for part in parts for tensor in part)):
        total = first.new_zeros(rows, first.shape[1])
        for index, source in parts:
            total.index_add_(0, index, source)
        return total
    total, written = first.new_empty(rows, first.shape[1]), np.zeros(rows, np.uint8)
    arrays = [(index.numpy(), source.contiguous().numpy()) for index, source in parts]

    def add(low: int, high: int) -> None:
        for index, source in arrays:
            _write_or_add(total.numpy(), written, index, source, low, high)
        _clear_unwritten(total.numpy(), written, low, high)

    for_each_part(rows, add, _FEWEST)
    return total


@kernel
def _write_or_add(
    target: np.ndarray, written: np.ndarray, index: np.ndarray, source: np.ndarray, low: int, high: int
) -> None:
    """Write the rows low … high - 1 of the target, or add to them."""
    for i in range(index.shape[0]):
        row = index[i]
        if row < low or row >= high:
            continue
        if written[row]:
            add_row(target, row, source, i)
        else:
            written[row] = 1
            copy_row(target, row, source, i)


@kernel
def _clear_unwritten(target: np.ndarray, written: np.ndarray, low: int, high: int) -> None:
    for row in range(low, high):
        if not written[row]:
            target[row] = 0


def gather_rows(rows: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Gather ``rows[index]`` [k, d] of any dtype, int64 [k]; no autograd. ``out`` is contiguous.

    Raises:
        IndexError: there is no such row, as with torch's ``index_select``.
    """
    if rows.dtype != torch.float32 or not on_cpu(rows, index) or not rows.is_contiguous():
        return torch.index_select(rows, 0, index, out=out) if out is not None else rows.index_select(0, index)
    out = rows.new_empty(len(index), rows.shape[1]) if out is None else out
    source, places, target = rows.detach().numpy(), index.numpy(), out.numpy()

    def gather(low: int, high: int) -> None:
        done = low + _gather_rows(source, places[low:high], target[low:high])
        if done < high:
            raise IndexError(f"row {places[done]} is asked of a matrix with {len(source)} rows")

    for_each_part(len(places), gather, _FEWEST)
    return out


@kernel
def _gather_rows(rows: np.ndarray, index: np.ndarray, out: np.ndarray) -> int:
    """Copy rows, and return how many: fewer than asked if the next one does not exist."""
    for i in range(index.shape[0]):
        if i + AHEAD < index.shape[0]:
            prefetch_row(rows, index[i + AHEAD])
        row = index[i]
        if row < 0 or row >= rows.shape[0]:
            return i
        copy_row(out, i, rows, row)
    return len(index)


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, index: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(index)
        ctx.shape = rows.shape
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        (index,) = ctx.saved_tensors
        total = gradient.new_zeros(ctx.shape)
        add_rows(total, index, gradient.contiguous())
        return total, None


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Gather ``rows[index]`` [k, d]; its gradient uses ``add_rows``, many times faster than torch's own."""
    gathered: Tensor = _TakeRows.apply(rows, index)
    return gathered


def squared_norms(rows: Tensor) -> Tensor:
    """Compute |·|² of each row: float32 [n, d] -> [n]; no autograd."""
    if not on_cpu(rows) or rows.dtype != torch.float32:
        return torch.linalg.vecdot(rows, rows)
    out = rows.new_empty(len(rows))
    _squared_norms(rows.detach().numpy(), out.numpy())
    return out


@kernel
def _squared_norms(rows: np.ndarray, out: np.ndarray) -> None:
    for i in range(rows.shape[0]):
        total = np.float32(0)
        for j in range(rows.shape[1]):
            total += rows[i, j] * rows[i, j]
        out[i] = total
