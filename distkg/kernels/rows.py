"""Rows by index: adding into them with duplicates, with a plain reference beside each kernel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu


def add_rows(target: Tensor, index: Tensor, source: Tensor) -> None:
    """``target[index[i]] += source[i]``, duplicates summed.

    Args:
        target: float32 [n, d], changed in place.
        index: int64 [k], values in [0, n).
        source: float32 [k, d].
    """
    if on_cpu(target, index, source) and target.dtype == source.dtype == torch.float32:
        _add_rows(target.numpy(), index.numpy(), source.numpy())
    else:
        target.index_add_(0, index, source.to(target.dtype))


@kernel
def _add_rows(target: np.ndarray, index: np.ndarray, source: np.ndarray) -> None:
    for i in range(index.shape[0]):
        row = index[i]
        for j in range(target.shape[1]):
            target[row, j] += source[i, j]


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, *indices: Tensor):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*indices)
        ctx.shape = rows.shape
        return tuple(rows.index_select(0, index) for index in indices)

    @staticmethod
    def backward(ctx, *gradients: Tensor):  # type: ignore[no-untyped-def]
        total = gradients[0].new_zeros(ctx.shape)
        for index, gradient in zip(ctx.saved_tensors, gradients, strict=True):
            add_rows(total, index, gradient.contiguous())
        return total, *(None for _ in gradients)


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """``rows[index]`` [k, d] whose gradient sums duplicates by ``add_rows``, many times faster than torch's own."""
    return take_rows_of_each(rows, index)[0]


def take_rows_of_each(rows: Tensor, *indices: Tensor) -> tuple[Tensor, ...]:
    """``rows[index]`` for each index; their gradients are summed into one buffer."""
    taken: tuple[Tensor, ...] = _TakeRows.apply(rows, *indices)
    return taken
