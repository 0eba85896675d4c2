"""Backward pass from a gradient that is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return output.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient, None


def with_gradient(output: Tensor, gradient: Tensor) -> Tensor:
    """Return 0, a scalar whose gradient by ``output`` is ``gradient``; differentiate it alone, or as a term of a sum.

    ``torch.autograd.backward(output, gradient)`` does the same, but it imports SymPy, which takes a quarter of a second
    in every process.
    """
    with torch.enable_grad():
        nothing: Tensor = _WithGradient.apply(output, gradient)
    return nothing
