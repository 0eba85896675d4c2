"""Similarity of queries and answers in training: the scorer's own, or its squared distance under a hardness-aware
activation (HaLE, Wang et al. 2022, arXiv 2201.00565, section 3.2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distkg.config import ConfigError, RunConfig
from distkg.embedding.scorers import Scorer
from distkg.kernels.gather_scatter import take_rows
from distkg.kernels.scores.activated import ActivatedDistance
from distkg.kernels.scores.activations import ACTIVATIONS
from distkg.kernels.scores.similarity import SQUARED_L2, Similarity

SMALLEST_SCALE = 0.05
"""Lower bound of c_r. At c_r = 0 all activated distances are equal, the gradient vanishes, and c_r cannot recover."""


class Hardness(nn.Module):
    """Training similarity without an activation: the scorer's own.

    Attributes:
        similarity: similarity of training queries and candidates.
    """

    def __init__(self, similarity: Similarity) -> None:
        super().__init__()
        self.similarity = similarity

    def forward(self, query: Tensor, relation: Tensor) -> Tensor:
        """Return training queries from query vectors [B, Q] and relation rows int64 [B]."""
        return query


class ActivatedHardness(Hardness):
    """Activation of c_r ‖q − e‖², with a c_r > 0 for each relation that starts at 1 (eq. 8)."""

    def __init__(self, similarity: ActivatedDistance, relations: int, *, learned: bool) -> None:
        super().__init__(similarity)
        start = torch.full((relations, 1), math.log(math.expm1(1 - SMALLEST_SCALE)))
        self.raw_scale = nn.Parameter(start) if learned else None

    def forward(self, query: Tensor, relation: Tensor) -> Tensor:
        if self.raw_scale is None:
            scale = query.new_ones(len(query), 1)
        else:
            scale = SMALLEST_SCALE + F.softplus(take_rows(self.raw_scale, relation))
        return torch.cat((query, scale), dim=1)


def make_hardness(config: RunConfig, scorer: Scorer, relations: int) -> Hardness:
    """Build the training similarity configured in ``objective.activation``.

    Raises:
        ConfigError: an activation for a scorer without a squared distance.
    """
    objective = config.objective
    if objective.activation == "none":
        return Hardness(scorer.similarity)
    if scorer.similarity is not SQUARED_L2:
        raise ConfigError(
            f"objective.activation: {objective.activation} activates squared L2 distances; {config.model.name} "
            f"compares by {scorer.similarity.name}. Use rote without bias, or set model.options.distance: squared_l2 "
            "for distmult, rotate and rotl, or model.options.norm: squared_l2 for transe; or set "
            "objective.activation: none."
        )
    activation = ACTIVATIONS[objective.activation](objective.activation_limit, objective.activation_steepness)
    return ActivatedHardness(ActivatedDistance(activation), relations, learned=objective.relation_scale)
