"""Message passing over paths of three nodes: every node of a path gathers the product of the other two nodes' vectors.

A path (a, b, c) adds y[b] z[c] to a, x[a] z[c] to b, and x[a] y[b] to c. Paths with the same first two nodes form a
run, so that a path costs two additions of a row and one integer. Compiled for float32 on CPU, with one thread per
query; a plain torch form is the reference, and runs on other devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu
from distkg.kernels.threads import for_each


@dataclass(frozen=True)
class Paths:
    """Paths of three nodes, in runs with equal first and middle nodes.

    Attributes:
        first, middle: int32 [runs], nodes a and b of each run.
        offsets: int64 [runs + 1]; the nodes c of run i are ``last[offsets[i]:offsets[i + 1]]``.
        last: int32 [paths].
    """

    first: Tensor
    middle: Tensor
    offsets: Tensor
    last: Tensor

    def __len__(self) -> int:
        return len(self.last)

    def expanded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the nodes a, b and c of every path: int64 [paths] each."""
        counts = self.offsets.diff()
        return (
            self.first.long().repeat_interleave(counts),
            self.middle.long().repeat_interleave(counts),
            self.last.long(),
        )


def gather_products(x: Tensor, y: Tensor, z: Tensor, paths: Paths) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the products at first, middle and last nodes: float32 [B, n, d] each; differentiable in all three tensors.

    Args:
        x, y, z: float32 [B, n, d], vectors of nodes in the role of first, middle and last node of a path.
    """
    if x.dtype != torch.float32 or not on_cpu(x, y, z):
        return reference_gather_products(x, y, z, paths)
    sums: tuple[Tensor, Tensor, Tensor] = _GatherProducts.apply(x, y, z, paths)
    return sums


def reference_gather_products(x: Tensor, y: Tensor, z: Tensor, paths: Paths) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch form of ``gather_products``, for any device; holds all products at once."""
    a, b, c = (nodes.to(x.device) for nodes in paths.expanded())
    first, middle, last = x[:, a], y[:, b], z[:, c]
    return (
        torch.zeros_like(x).index_add(1, a, middle * last),
        torch.zeros_like(y).index_add(1, b, first * last),
        torch.zeros_like(z).index_add(1, c, first * middle),
    )


class _GatherProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, z: Tensor, paths: Paths):  # type: ignore[no-untyped-def]
        inputs = [tensor.contiguous() for tensor in (x, y, z)]
        out = [torch.zeros_like(tensor) for tensor in inputs]
        _for_each_query(_gather, inputs, out, paths)
        ctx.save_for_backward(*inputs)
        ctx.paths = paths
        return tuple(out)

    @staticmethod
    def backward(ctx, *gradients: Tensor):  # type: ignore[no-untyped-def]
        inputs = ctx.saved_tensors
        out = [torch.zeros_like(tensor) for tensor in inputs]
        _for_each_query(_scatter, [*inputs, *(gradient.contiguous() for gradient in gradients)], out, ctx.paths)
        return *out, None


def _for_each_query(run, given: list[Tensor], out: list[Tensor], paths: Paths) -> None:  # type: ignore[no-untyped-def]
    nodes = tuple(side.numpy() for side in (paths.first, paths.middle, paths.offsets, paths.last))
    arrays = [tensor.detach().numpy() for tensor in (*given, *out)]
    for_each([(i,) for i in range(len(given[0]))], lambda i: run(*nodes, *(array[i] for array in arrays)))


@kernel
def _gather(first, middle, offsets, last, x, y, z, to_x, to_y, to_z):  # type: ignore[no-untyped-def]
    width = x.shape[1]
    product, total = np.empty(width, np.float32), np.empty(width, np.float32)
    for run in range(first.shape[0]):
        a, b = first[run], middle[run]
        for k in range(width):
            product[k] = x[a, k] * y[b, k]
            total[k] = np.float32(0)
        for place in range(offsets[run], offsets[run + 1]):
            c = last[place]
            for k in range(width):
                total[k] += z[c, k]
                to_z[c, k] += product[k]
        for k in range(width):
            to_x[a, k] += y[b, k] * total[k]
            to_y[b, k] += x[a, k] * total[k]


@kernel
def _scatter(first, middle, offsets, last, x, y, z, g_x, g_y, g_z, to_x, to_y, to_z):  # type: ignore[no-untyped-def]
    width = x.shape[1]
    step, total, back = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    for run in range(first.shape[0]):
        a, b = first[run], middle[run]
        for k in range(width):
            step[k] = g_x[a, k] * y[b, k] + x[a, k] * g_y[b, k]
            total[k] = back[k] = np.float32(0)
        for place in range(offsets[run], offsets[run + 1]):
            c = last[place]
            for k in range(width):
                total[k] += z[c, k]
                back[k] += g_z[c, k]
                to_z[c, k] += step[k]
        for k in range(width):
            to_x[a, k] += g_y[b, k] * total[k] + y[b, k] * back[k]
            to_y[b, k] += g_x[a, k] * total[k] + x[a, k] * back[k]
