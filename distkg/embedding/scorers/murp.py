"""MuRP (Balažević et al. 2019, arXiv 1905.09791): score = −d_c(exp₀(R log₀ h), r′ ⊕ t)² + b_h + b_t.

R is diagonal, ⊕ is Möbius addition in the ball of curvature −c. The paper translates the answer from the other side,
t ⊕ r′. Both points have the same norm, and t ⊕ r′ = gyr[t, r′](r′ ⊕ t): they differ by a rotation that depends on t.
Only the form here is an isometry of the ball, and hence exactly a distance from one query vector,

    d_c(x, r′ ⊕ t) = d_c(−r′ ⊕ x, t).

Further differences: the paper has c = 1 (``curvature: fixed``; the default learns one per relation), separate biases
for heads and tails (here one per entity), and points of the ball with Riemannian steps. Here vectors are in the tangent
space at the origin (``hyperbolic.py``). They start at 10⁻³ times a standard normal, biases at 0, R uniform in ±1, as in
the paper's reference settings; a learned c starts at softplus(1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.embedding.scorers.base import SCORERS
from distkg.embedding.scorers.hyperbolic import HyperbolicOptions, HyperbolicScorer, mobius_add


@SCORERS.register("murp")
class MuRP(HyperbolicScorer):
    """Relation rows [diagonal of R dim | translation dim | raw curvature]."""

    def __init__(self, dim: int, options: HyperbolicOptions) -> None:
        super().__init__(dim, options, own_width=dim)

    def transform(self, vector: Tensor, own: Tensor) -> Tensor:
        return vector * own

    def translate(self, point: Tensor, translation: Tensor, c: Tensor) -> Tensor:
        return mobius_add(-translation, point, c)

    def factors(self, anchor: Tensor, relation: Tensor, answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return anchor[..., : self.dim].abs(), relation[..., : 2 * self.dim].abs(), answer[..., : self.dim].abs()

    def init_relations(self, rows: Tensor, generator: torch.Generator) -> None:
        super().init_relations(rows, generator)
        rows[:, : self.dim].uniform_(-1, 1, generator=generator)
