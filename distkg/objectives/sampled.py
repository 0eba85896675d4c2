"""Objectives that compare the answer's score with those of sampled negatives.

Each maps positive scores [B] and negative scores [B, K] (``EXCLUDED`` where a negative was left out) to one loss
per query [B]. They read as in their papers; the step averages them over the queries of all ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.config import ObjectiveConfig
from distkg.registry import Registry

EXCLUDED = -1e9  # the score of a negative left out: finite, so that 0 × it is 0

SAMPLED: Registry[type[SampledObjective]] = Registry("objective with negatives", "distkg.objectives")


class SampledObjective(ABC):
    """A loss over one positive and K negatives per query."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.margin = config.margin
        self.temperature = config.temperature

    @abstractmethod
    def __call__(self, positive: Tensor, negative: Tensor, growth: Tensor | None = None) -> Tensor:
        """Loss [B] of positive scores [B] and negative scores [B, K].

        ``growth`` float32 [B] is a factor on the margin of each query; objectives without a margin have no use for it.
        """

    def _grown(self, growth: Tensor | None) -> Tensor | float:
        return self.margin if growth is None else self.margin * growth


@SAMPLED.register("margin")
class MarginRanking(SampledObjective):
    """Mean of max(0, γ − s⁺ + s⁻) (Bordes et al. 2013, eq. 1)."""

    def __call__(self, positive: Tensor, negative: Tensor, growth: Tensor | None = None) -> Tensor:
        below = self._grown(growth) - positive
        return _mean_of_included(F.relu(below[:, None] + negative), negative)


@SAMPLED.register("logistic")
class Logistic(SampledObjective):
    """Binary cross entropy: −log σ(s⁺) − mean log σ(−s⁻) (Trouillon et al. 2016, eq. 10)."""

    def __call__(self, positive: Tensor, negative: Tensor, growth: Tensor | None = None) -> Tensor:
        return F.softplus(-positive) + _mean_of_included(F.softplus(negative), negative)


@SAMPLED.register("self_adversarial")
class SelfAdversarial(SampledObjective):
    """−log σ(γ + s⁺) − Σ p log σ(−γ − s⁻), p = softmax(temperature · s⁻) held constant (Sun et al. 2019, eq. 5-6).

    With temperature 0 all negatives weigh the same (their eq. 4).
    """

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

    def __call__(self, positive: Tensor, negative: Tensor, growth: Tensor | None = None) -> Tensor:
        return torch.logaddexp(positive, torch.logsumexp(negative, 1)) - positive


def _mean_of_included(terms: Tensor, negative: Tensor) -> Tensor:
    """Mean [B] of terms [B, K] that are 0 where a negative is left out; 0 where all are."""
    if negative.numel() and negative.detach().amin() > EXCLUDED:
        return terms.mean(1)  # counting costs as much as the loss itself, the smallest score next to nothing
    return terms.sum(1) / (negative != EXCLUDED).sum(1).clamp_min(1)
