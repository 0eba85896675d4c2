"""States concatenated with products of a small projection: [x, s ⊙ t₁, …, 0, s ⊙ tₙ], s = W x + b.

Such rows are passed along edges at once. As separate torch operations, the concatenation copies x once more in both
directions, and every product makes its own pass over memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu
from distkg.kernels.message_passing.sums import for_each_part_of_edges
from distkg.kernels.products import product_over_rows, product_plus

_BLOCK = 4096  # rows per block; sums over rows are computed block by block


def beside(states: Tensor, weight: Tensor, bias: Tensor, factors: Sequence[Tensor], width: int) -> Tensor:
    """Concatenate states and products of their projection with factors: float32 [..., width].

    The last product is at the end of the row, with zeros before it. Differentiable in all tensors.

    Args:
        states: x, float32 [..., d].
        weight, bias: W [m, d] and b [m].
        factors: t, n tensors float32 [..., m]; at least one.
        width: at least d + n m.
    """
    if states.dtype != torch.float32 or not on_cpu(states, weight, bias, *factors) or torch.is_autocast_enabled("cpu"):
        return reference_beside(states, weight, bias, factors, width)
    found: Tensor = _Beside.apply(width, states, weight, bias, *factors)
    return found


def reference_beside(states: Tensor, weight: Tensor, bias: Tensor, factors: Sequence[Tensor], width: int) -> Tensor:
    """Plain torch form of ``beside``, for any device."""
    small = F.linear(states, weight, bias)
    *first, last = (small * factor for factor in factors)
    lacking = width - states.shape[-1] - small.shape[-1] * len(factors)
    return torch.cat([states, *first, small.new_zeros(*small.shape[:-1], lacking), last], dim=-1)


class _Beside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, width, states, weight, bias, *factors):  # type: ignore[no-untyped-def]
        x = _rows(states)
        by = [_rows(factor) for factor in factors]
        small, out = x.new_empty(len(x), len(weight)), x.new_empty(len(x), width)
        arrays = [each.detach().numpy() for each in (x, weight.contiguous(), bias, small, out)]
        factors_by_row = tuple(each.detach().numpy() for each in by)
        for_each_part_of_edges(1, np.arange(len(x) + 1), lambda _, low, high: _join(low, high, *arrays, factors_by_row))
        ctx.save_for_backward(x, weight, small, *by)
        ctx.shapes = states.shape, factors[0].shape
        return out.view(*states.shape[:-1], width)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        x, weight, small, *by = ctx.saved_tensors
        g, width, narrow = _rows(gradient), x.shape[1], small.shape[1]
        starts = [width + narrow * place for place in range(len(by) - 1)] + [g.shape[1] - narrow]
        to_x, to_by, back = torch.empty_like(x), [torch.empty_like(each) for each in by], weight.T.contiguous()
        to_weight, to_bias = torch.zeros_like(weight), x.new_zeros(narrow)
        for low in range(0, len(x), _BLOCK):
            here = slice(low, min(low + _BLOCK, len(x)))
            to_small = torch.zeros_like(small[here])
            for start, factor, to_factor in zip(starts, by, to_by, strict=True):
                own = g[here, start : start + narrow]
                to_small.addcmul_(own, factor[here])
                torch.mul(own, small[here], out=to_factor[here])
            to_x[here] = product_plus(to_small, back, g[here, :width].contiguous())
            to_weight += product_over_rows(to_small, x[here])
            to_bias += to_small.sum(0)
        of_states, of_factors = ctx.shapes
        return None, to_x.view(of_states), to_weight, to_bias, *(each.view(of_factors) for each in to_by)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1]).contiguous()


@kernel
def _join(low, high, x, weight, bias, small, out, factors):  # type: ignore[no-untyped-def]
    width, narrow, last = x.shape[1], small.shape[1], len(factors) - 1
    for start in range(low, high, 64):  # rows, which stay in the cache
        end = min(start + 64, high)
        for i in range(start, end):
            for c in range(width):
                out[i, c] = x[i, c]
            for c in range(width + narrow * last, out.shape[1] - narrow):
                out[i, c] = 0
            for j in range(narrow):
                total = bias[j]
                for c in range(width):
                    total += x[i, c] * weight[j, c]
                small[i, j] = total
        for k in range(len(factors)):
            factor, first = factors[k], width + narrow * k if k < last else out.shape[1] - narrow
            for i in range(start, end):
                for j in range(narrow):
                    out[i, first + j] = small[i, j] * factor[i, j]
