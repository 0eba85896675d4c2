"""Base of scorers in hyperbolic space: maps of the Poincaré ball, and the layout of rows.

Rows hold vectors of the tangent space at the origin, as in the reference settings of Chami et al. 2020: optimizers of
rows are Euclidean, and every float vector is then a point of every ball. exp₀ maps the vectors into the ball of the
relation's curvature −c; c = softplus of the last column of the relation's row (at least 10⁻⁴).

Points stay in the ball shrunk by ``MARGIN`` = 0.004, |x| ≤ (1 − 0.004)/√c: exp₀ and log₀ project points outside it. All
functions map [..., D] and c [..., 1] to [..., D].
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from distkg.embedding.scorers.base import Options, Scorer
from distkg.kernels.scores.poincare_distance import MARGIN, RADIUS, TINY, HyperbolicSimilarity, curvature

INITIAL_RAW_CURVATURE = 1.0  # c = 1.31, where the reference settings of Chami et al. start
UNIT_RAW_CURVATURE = 0.5413248546129181  # log(e − 1): c = 1


class HyperbolicOptions(Options):
    bias: bool = Field(True, description="Learned bias for each entity, stored as the last column of its row.")
    curvature: Literal["learned", "fixed"] = Field(
        "learned", description="learned: one per relation, stored as the last column of its row. fixed: 1 for all."
    )


class HyperbolicScorer(Scorer):
    """Base of hyperbolic scorers: score = −d_c(x ⊕ exp₀(r′), exp₀(t))² + b_h + b_t with x = exp₀(transform(h)).

    Subclasses define ``transform``, and may override ``translate``. Entity rows are [vector dim | bias], relation rows
    [own part | translation r′ dim | raw curvature]. A right Möbius translation has no inverse that is one translation,
    so inverse relations are learned.
    """

    Options = HyperbolicOptions

    def __init__(self, dim: int, options: HyperbolicOptions, own_width: int) -> None:
        super().__init__(dim, options)
        self.own_width = own_width
        self.bias = options.bias
        self.learned_curvature = options.curvature == "learned"
        self.entity_width = dim + options.bias
        self.relation_width = own_width + dim + self.learned_curvature
        self.similarity = HyperbolicSimilarity(bias=options.bias)

    def transform(self, vector: Tensor, own: Tensor) -> Tensor:
        """Transform the anchor's tangent vectors [B, dim] by the relation's own part [B, own_width]: [B, dim]."""
        raise TypeError(f"{type(self).__name__} does not define transform()")

    def translate(self, point: Tensor, translation: Tensor, c: Tensor) -> Tensor:
        """Translate points of the ball, all [B, dim]; c [B, 1]. Default: from the right, point ⊕ translation."""
        return mobius_add(point, translation, c)

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        own, translation, raw = relation.tensor_split((self.own_width, self.own_width + self.dim), dim=-1)
        vector, bias = anchor.tensor_split((self.dim,), dim=-1)
        if not self.learned_curvature:
            raw = torch.full_like(vector[..., :1], UNIT_RAW_CURVATURE)
        c = curvature(raw)
        point = self.translate(exp0(self.transform(vector, own), c), exp0(translation, c), c)
        return torch.cat((log0(point, c), bias, raw), dim=-1)

    def answer_rows(self, anchor: Tensor, query: Tensor) -> Tensor:
        return query[..., : self.entity_width]  # the rest is the curvature

    def factors(self, anchor: Tensor, relation: Tensor, answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        translation = relation[..., self.own_width : self.own_width + self.dim]
        return anchor[..., : self.dim].abs(), translation.abs(), answer[..., : self.dim].abs()

    def init_entities(self, rows: Tensor, generator: torch.Generator) -> None:
        rows.normal_(0, 1e-3, generator=generator)
        rows[:, self.dim :].zero_()

    def init_relations(self, rows: Tensor, generator: torch.Generator) -> None:
        rows.normal_(0, 1e-3, generator=generator)
        rows[:, self.own_width + self.dim :].fill_(INITIAL_RAW_CURVATURE)


def exp0(vector: Tensor, c: Tensor) -> Tensor:
    """Map tangent vectors at the origin to points of the ball: tanh(ρ) v/ρ, ρ = √c|v|."""
    rho = _scaled_length(vector, c)
    return vector * (rho.clamp_max(RADIUS).tanh() / rho)


def log0(point: Tensor, c: Tensor) -> Tensor:
    """Invert ``exp0``: artanh(ρ) x/ρ, ρ = √c|x|, at the nearest point within the margin."""
    rho = _scaled_length(point, c)
    return point * (rho.clamp_max(1 - MARGIN).atanh() / rho)


def mobius_add(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """Add by Möbius addition within the margin:
    x ⊕_c y = ((1 + 2c x·y + c|y|²) x + (1 − c|x|²) y) / (1 + 2c x·y + c²|x|²|y|²)."""
    inner, x_norm, y_norm = ((a * b).sum(-1, keepdim=True) for a, b in ((x, y), (x, x), (y, y)))
    near = 1 + 2 * c * inner
    return ((near + c * y_norm) * x + (1 - c * x_norm) * y) / (near + c**2 * x_norm * y_norm)


def _scaled_length(vector: Tensor, c: Tensor) -> Tensor:
    return (c * vector.square().sum(-1, keepdim=True)).clamp_min(TINY).sqrt()
