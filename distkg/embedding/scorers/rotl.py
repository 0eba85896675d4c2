"""RotL (Wang et al. 2021, arXiv 2103.14930) in the form of HaLE (Wang et al. 2022, arXiv 2201.00565, eq. 14, 16).

Flexible addition: x ⊕ y = α (x + y) / (1 + x·y). With q = Rot(r, anchor) ⊕ r′,

    score = −φ(‖(−q) ⊕ answer‖) = −φ(α ‖q − c‖ / |1 − q·c|),   φ(x) = x eˣ.

Two guards keep scores and gradients finite without changing the order of other answers: a denominator within ±0.01 is
replaced by 0.01 with its sign, and φ is continued by its tangent above x = 10.
RotL has an α for each relation: ``relation_alpha`` learns it in q (in the comparison it would change no rank). With
``distance: squared_l2`` the score is −‖q − c‖², which HaLE trains with its own activation (section 3.3).
HaLE's form has no entity biases, so there are none here. Vectors start at 10⁻³ times a standard normal,
angles uniform in ±π.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from distkg.embedding.scorers.algebra import rotate
from distkg.embedding.scorers.base import SCORERS, Options, Scorer, require_multiple
from distkg.kernels.scores.similarity import SQUARED_L2, RotLSimilarity

SMALLEST_DENOMINATOR = 1e-2


class RotLOptions(Options):
    alpha: float = Field(1.0, gt=0, description="Scale α of the flexible addition.")
    relation_alpha: bool = Field(
        False, description="Learn α of the addition in the query for each relation, starting at alpha."
    )
    distance: Literal["flexible", "squared_l2"] = Field(
        "flexible", description="Compare by the flexible addition under φ, or by squared L2 distance."
    )


@SCORERS.register("rotl")
class RotL(Scorer):
    """RotL scorer. Relation rows [phases dim/2 | translation dim | difference of a learned α from ``alpha``].

    ⊕ has no inverse in closed form, so inverse relations are learned.
    """

    Options = RotLOptions

    def __init__(self, dim: int, options: RotLOptions) -> None:
        require_multiple(dim, 2, "rotl")
        super().__init__(dim, options)
        self.relation_width = dim // 2 + dim + options.relation_alpha
        self.alpha = options.alpha
        self.similarity = RotLSimilarity(options.alpha) if options.distance == "flexible" else SQUARED_L2

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        phase, translation, alpha = relation.tensor_split((self.dim // 2, self.dim // 2 + self.dim), dim=-1)
        return flexible_add(rotate(anchor, phase), translation, alpha + self.alpha if alpha.shape[-1] else self.alpha)

    def factors(self, anchor: Tensor, relation: Tensor, answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return anchor.abs(), relation[..., self.dim // 2 :][..., : self.dim].abs(), answer.abs()

    def init_relations(self, rows: Tensor, generator: torch.Generator) -> None:
        rows.normal_(0, 1e-3, generator=generator)
        rows[:, : self.dim // 2].uniform_(-torch.pi, torch.pi, generator=generator)


def flexible_add(x: Tensor, y: Tensor, alpha: Tensor | float) -> Tensor:
    """Flexible addition α (x + y) / (1 + x·y) over the last dimension: [..., D], with α a number or [..., 1]."""
    denominator = 1 + (x * y).sum(dim=-1, keepdim=True)
    above = denominator.clamp_min(SMALLEST_DENOMINATOR)
    below = denominator.clamp_max(-SMALLEST_DENOMINATOR)
    return alpha * (x + y) / torch.where(denominator < 0, below, above)
