"""Hardness-aware activations h of squared distances (HaLE, Wang et al. 2022, arXiv 2201.00565, section 3.2).

An activation is steep at distances of hard instances, and flat where the distance already decides. All activations map
x ≥ 0 [any shape] to h(x) ≥ 0 of the same shape, increase, and have a finite value and slope for every finite x.
``slope`` is h′(x), for blocks of scores without autograd.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from distkg.registry import Registry

ACTIVATIONS: Registry[type[Activation]] = Registry("activation")


class Activation(ABC):
    """Base class of activations: increasing functions of x ≥ 0.

    Args:
        limit: γ > 0, limit of the bounded activations.
        steepness: β > 0; None for the default of the activation.
    """

    default_steepness = 1.0

    @property
    def largest(self) -> float:
        """Least upper bound of h; infinite unless the activation is bounded."""
        return math.inf

    def __init__(self, limit: float = 10.0, steepness: float | None = None) -> None:
        self.limit = limit
        self.steepness = self.default_steepness if steepness is None else steepness

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return h(x); differentiable."""

    @abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """Return h′(x)."""


@ACTIVATIONS.register("hanon")
class Hanon(Activation):
    """HaLE's bounded activation 1 / (1/γ + exp(−β (x − ½))) (eq. 6), as γ σ(β (x − ½) − ln γ), which never overflows;
    h(0) > 0."""

    default_steepness = 3.0

    @property
    def largest(self) -> float:
        return self.limit

    def __call__(self, x: Tensor) -> Tensor:
        return self.limit * self._share(x)

    def slope(self, x: Tensor) -> Tensor:
        share = self._share(x)
        return self.limit * self.steepness * share * (1 - share)

    def _share(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.steepness * x - (self.steepness / 2 + math.log(self.limit)))


@ACTIVATIONS.register("halin")
class Halin(Activation):
    """HaLE's piecewise linear activation: 2x below 1, then min(β (x − 1) + 2, γ) (eq. 7)."""

    default_steepness = 10.0

    @property
    def largest(self) -> float:
        return self.limit

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(x < 1, 2 * x, self.steepness * (x - 1) + 2).clamp_max(self.limit)

    def slope(self, x: Tensor) -> Tensor:
        rising = torch.where(x < 1, 2.0, self.steepness)
        return torch.where(self(x) < self.limit, rising, 0.0).to(x.dtype)


@ACTIVATIONS.register("x_exp")
class XExp(Activation):
    """RotL's activation x eˣ (Wang et al. 2021, arXiv 2103.14930); above 10 continued by its tangent, since eˣ would
    overflow."""

    BEND = 10.0

    def __call__(self, x: Tensor) -> Tensor:
        low = x.clamp_max(self.BEND)
        return low * low.exp() + math.exp(self.BEND) * (1 + self.BEND) * torch.relu(x - self.BEND)

    def slope(self, x: Tensor) -> Tensor:
        low = x.clamp_max(self.BEND)
        return low.exp() * (1 + low)


@ACTIVATIONS.register("double")
class Double(Activation):
    """Linear activation 2x: hardness has no effect."""

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * x

    def slope(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 2.0)


@ACTIVATIONS.register("artanh")
class Artanh(Activation):
    """Activation 2 artanh(x), the shape of hyperbolic distance; from 0.99 on continued by its tangent, before the pole
    at 1."""

    BEND = 0.99

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * torch.atanh(x.clamp_max(self.BEND)) + 2 / (1 - self.BEND**2) * torch.relu(x - self.BEND)

    def slope(self, x: Tensor) -> Tensor:
        return 2 / (1 - x.clamp_max(self.BEND).square())
