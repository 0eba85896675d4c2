"""Penalties on the vectors that a batch uses."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from distkg.registry import Registry


class Regularizer(Protocol):
    """Penalty per row [B] of non-negative magnitudes [B, D]."""

    def __call__(self, magnitude: Tensor) -> Tensor: ...


REGULARIZERS: Registry[Regularizer] = Registry("regularizer")


@REGULARIZERS.register("n3")
def nuclear_3_norm(magnitude: Tensor) -> Tensor:
    """Σ |x|³ (Lacroix et al. 2018, eq. 4, without its 1/3, which the weight absorbs)."""
    return magnitude.pow(3).sum(-1)


@REGULARIZERS.register("l2")
def squared_l2(magnitude: Tensor) -> Tensor:
    """Σ |x|²."""
    return magnitude.square().sum(-1)
