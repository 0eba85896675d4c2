"""Regularizers on the vectors that a batch uses."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from distkg.registry import Registry


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
