"""Objectives that compare the score of the answer with those of sampled negatives.

Each maps positive scores [B] and negative scores [B, K] (``EXCLUDED`` for excluded negatives) to one loss per query
[B], as in its paper; the step averages over the queries of all ranks. The plain torch form is the definition;
``with_gradients`` computes the same, and its derivatives, in one compiled pass where there is one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.config import ObjectiveConfig
from distkg.kernels.jit import on_cpu
from distkg.kernels.sampled.losses import LOGISTIC, MARGIN, SAMPLED_SOFTMAX, SELF_ADVERSARIAL, compute_losses
from distkg.kernels.threads import for_each_part
from distkg.registry import Registry

EXCLUDED = -1e9  # score of an excluded negative: finite, so that 0 × EXCLUDED is 0
_FEWEST = 1 << 15  # scores of a part: with fewer, a thread costs more than it saves

SAMPLED: Registry[type[SampledObjective]] = Registry("objective with negatives", "distkg.objectives")


class SampledObjective(ABC):
    """Base class of losses over one positive and K negatives per query.

    Attributes:
        compiled: kind of loss of ``kernels/sampled/losses.py`` that is the same; None if there is none.
    """

    compiled: ClassVar[int | None] = None

    def __init_subclass__(cls, **settings: Any) -> None:
        """Drop the compiled loss of a parent, if a class has another loss."""
        super().__init_subclass__(**settings)
        if "__call__" in cls.__dict__ and "compiled" not in cls.__dict__:
            cls.compiled = None

    def __init__(self, config: ObjectiveConfig) -> None:
        self.margin = config.margin
        self.temperature = config.temperature

    @abstractmethod
    def __call__(self, positive: Tensor, negative: Tensor, growth: Tensor | None = None) -> Tensor:
        """Return the loss [B] of positive scores [B] and negative scores [B, K].

        ``growth`` float32 [B] is a factor on the margin of each query; objectives without a margin ignore it.
        """

    def with_gradients(
        self, positive: Tensor, negative: Tensor, growth: Tensor | None = None, *, weight: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``weight`` times the loss [B], and its derivatives by positive [B] and negative scores [B, K]; no
        autograd."""
        if self.compiled is None or not on_cpu(positive, negative) or negative.dtype != torch.float32:
            with torch.enable_grad():
                positive, negative = positive.detach().requires_grad_(), negative.detach().requires_grad_()
                loss = self(positive, negative, growth) * weight
            to_positive, to_negative = torch.autograd.grad(loss.sum(), (positive, negative))
            return loss.detach(), to_positive, to_negative
        margin = torch.full_like(positive, self.margin) if growth is None else self.margin * growth
        loss, to_positive, to_negative = map(torch.empty_like, (positive, positive, negative))
        inputs = [tensor.detach().contiguous().numpy() for tensor in (positive, negative, margin)]
        outputs = [tensor.numpy() for tensor in (loss, to_positive, to_negative)]
        settings = map(np.float32, (self.temperature, weight, EXCLUDED))
        kind, arguments = self.compiled, [*inputs, *settings, *outputs]

        def compute(low: int, high: int) -> None:
            parts: list[Any] = [part[low:high] if isinstance(part, np.ndarray) else part for part in arguments]
            compute_losses(kind, *parts)

        for_each_part(len(loss), compute, max(1, _FEWEST // max(negative.shape[1], 1)))
        return loss, to_positive, to_negative

    def _grown(self, growth: Tensor | None) -> Tensor | float:
        return self.margin if growth is None else self.margin * growth


@SAMPLED.register("margin")
class MarginRanking(SampledObjective):
    """Margin ranking loss: mean of max(0, γ − s⁺ + s⁻) (Bordes et al. 2013, eq. 1)."""

    compiled = MARGIN

    def __call__(self, positive: Tensor, negative: Tensor, growth: Tensor | None = None) -> Tensor:
        below = self._grown(growth) - positive
        return _mean_of_included(F.relu(below[:, None] + negative), negative)


@SAMPLED.register("logistic")
class Logistic(SampledObjective):
    """Binary cross entropy: −log σ(s⁺) − mean log σ(−s⁻) (Trouillon et al. 2016, eq. 10)."""

    compiled = LOGISTIC

    def __call__(self, positive: Tensor, negative: Tensor, growth: Tensor | None = None) -> Tensor:
        return F.softplus(-positive) + _mean_of_included(F.softplus(negative), negative)


@SAMPLED.register("self_adversarial")
class SelfAdversarial(SampledObjective):
    """Self-adversarial loss −log σ(γ + s⁺) − Σ p log σ(−γ − s⁻) (Sun et al. 2019, eq. 5-6).

    p = softmax(temperature · s⁻) is a constant. With temperature 0 all negatives have the same weight (their eq. 4).
    """

    compiled = SELF_ADVERSARIAL

    def __call__(self, positive: Tensor, negative: Tensor, growth: Tensor | None = None) -> Tensor:
        margin = self._grown(growth)
        away = F.softplus(negative + (margin if growth is None else self._grown(growth[:, None])))
        return F.softplus(-margin - positive) + self._weighted(away, negative.detach())

    def _weighted(self, terms: Tensor, negative: Tensor) -> Tensor:
        if not self.temperature:
            return _mean_of_included(terms, negative)
        return (torch.softmax(self.temperature * negative, 1) * terms).sum(1)


@SAMPLED.register("sampled_softmax")
class SampledSoftmax(SampledObjective):
    """Cross entropy of the answer among itself and the negatives (PyTorch-BigGraph, Lerer et al. 2019, section 3.1)."""

    compiled = SAMPLED_SOFTMAX

    def __call__(self, positive: Tensor, negative: Tensor, growth: Tensor | None = None) -> Tensor:
        return torch.logaddexp(positive, torch.logsumexp(negative, 1)) - positive


def _mean_of_included(terms: Tensor, negative: Tensor) -> Tensor:
    """Return the mean [B] of terms [B, K] over included negatives; terms of excluded ones are 0."""
    return terms.sum(1) / (negative != EXCLUDED).sum(1).clamp_min(1)
