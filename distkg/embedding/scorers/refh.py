"""RefH (Chami et al. 2020, arXiv 2005.00545): score = −d_c(Ref(r, h) ⊕ r′, t)² + b_h + b_t, in the Poincaré ball.

Ref reflects pairs of coordinates (Givens reflections): (x, y) becomes (x cos φ + y sin φ, x sin φ − y cos φ). ⊕ is
Möbius addition in the ball of the relation's curvature −c.

Vectors lie in the tangent space at the origin (``hyperbolic.py``) and start at 10⁻³ times a standard normal, biases
at 0, angles uniform in ±π, c at softplus(1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.embedding.scorers.algebra import reflect
from distkg.embedding.scorers.base import SCORERS, require_multiple
from distkg.embedding.scorers.hyperbolic import HyperbolicOptions, HyperbolicScorer


@SCORERS.register("refh")
class RefH(HyperbolicScorer):
    """Relation rows [angles dim/2 | translation dim | raw curvature]."""

    def __init__(self, dim: int, options: HyperbolicOptions) -> None:
        require_multiple(dim, 2, "refh")
        super().__init__(dim, options, own_width=dim // 2)

    def transform(self, vector: Tensor, own: Tensor) -> Tensor:
        # Orthogonal maps commute with exp₀, so tangent vectors may be reflected instead of points.
        return reflect(vector, own)

    def init_relations(self, rows: Tensor, generator: torch.Generator) -> None:
        super().init_relations(rows, generator)
        rows[:, : self.own_width].uniform_(-torch.pi, torch.pi, generator=generator)
