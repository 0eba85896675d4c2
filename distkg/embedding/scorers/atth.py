"""AttH (Chami et al. 2020, arXiv 2005.00545): attention to RotH's rotation and RefH's reflection of the anchor.

    score = −d_c(Att(Rot(r, h), Ref(r, h); a) ⊕ r′, t)² + b_h + b_t,

where Att(x, y; a) is taken in the tangent space at the origin, exp₀(α_x log₀ x + α_y log₀ y) with (α_x, α_y) the
softmax of (a·log₀ x, a·log₀ y), and ⊕ is Möbius addition in the ball of the relation's curvature −c.

Vectors lie in the tangent space at the origin (``hyperbolic.py``) and start at 10⁻³ times a standard normal, the
contexts a too; biases start at 0, angles uniform in ±π, c at softplus(1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.embedding.scorers.algebra import reflect, rotate
from distkg.embedding.scorers.base import SCORERS, require_multiple
from distkg.embedding.scorers.hyperbolic import HyperbolicOptions, HyperbolicScorer


@SCORERS.register("atth")
class AttH(HyperbolicScorer):
    """Relation rows [angles of Rot dim/2 | angles of Ref dim/2 | context dim | translation dim | raw curvature]."""

    def __init__(self, dim: int, options: HyperbolicOptions) -> None:
        require_multiple(dim, 2, "atth")
        super().__init__(dim, options, own_width=2 * dim)

    def transform(self, vector: Tensor, own: Tensor) -> Tensor:
        # Orthogonal maps commute with log₀, so tangent vectors may be rotated and reflected instead of points.
        turning, mirroring, context = own.split((self.dim // 2, self.dim // 2, self.dim), dim=-1)
        turned, mirrored = rotate(vector, turning), reflect(vector, mirroring)
        share = torch.sigmoid((context * (turned - mirrored)).sum(-1, keepdim=True))
        return share * turned + (1 - share) * mirrored

    def init_relations(self, rows: Tensor, generator: torch.Generator) -> None:
        super().init_relations(rows, generator)
        rows[:, : self.dim].uniform_(-torch.pi, torch.pi, generator=generator)
