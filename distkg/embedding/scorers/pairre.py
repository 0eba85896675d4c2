"""PairRE (Chao et al. 2021, arXiv 2011.03798): score = −‖h ∘ r^H − t ∘ r^T‖₁, h and t of length 1.

Rows start uniform in ±(γ + 2)/dim, as in the authors' reference settings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distkg.embedding.scorers.base import SCORERS, Options, Scorer
from distkg.embedding.scorers.initial import margin_uniform_
from distkg.embedding.scorers.simple import swap_halves
from distkg.kernels.scores.similarity import SCALED_L1


class PairREOptions(Options):
    gamma: float = Field(6.0, ge=0, description="Rows start uniform in ±(gamma + 2)/dim; set to the margin.")


@SCORERS.register("pairre")
class PairRE(Scorer):
    """PairRE scorer. Relation rows [r^H | r^T], dim floats each; a tied r⁻¹ swaps the two."""

    Options = PairREOptions
    tied_inverse = True
    similarity = SCALED_L1

    def __init__(self, dim: int, options: PairREOptions) -> None:
        super().__init__(dim, options)
        self.relation_width = 2 * dim
        self.gamma = options.gamma

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Compute query vectors [B, 2 dim]: h ∘ r^H, and r^T, by which the similarity scales answers."""
        head_scale, tail_scale = relation.chunk(2, dim=-1)
        return torch.cat((F.normalize(anchor, dim=-1) * head_scale, tail_scale), dim=-1)

    def answer_rows(self, anchor: Tensor, query: Tensor) -> Tensor:
        point, scale = query.chunk(2, dim=-1)
        square = scale.square()
        return point * scale / (square + square.mean(-1, keepdim=True))  # bounded where r^T is near 0

    def candidates(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1)

    def inverse(self, relation: Tensor) -> Tensor:
        return swap_halves(relation)

    def init_entities(self, rows: Tensor, generator: torch.Generator) -> None:
        margin_uniform_(rows, self.gamma, self.dim, generator)
