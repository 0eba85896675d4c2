"""TripleRE (Yu et al. 2022, arXiv 2209.08271): score = −‖h ∘ (r^H + u) − t ∘ (r^T + u) + r^M‖₁, h and t of length 1.

``offset: 0`` is the paper's first version; u > 0 is its second, which is used on large graphs. Rows start uniform in
±(γ + 2)/dim, as in the authors' reference settings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distkg.embedding.scorers.base import SCORERS
from distkg.embedding.scorers.pairre import PairRE, PairREOptions


class TripleREOptions(PairREOptions):
    offset: float = Field(1.0, description="Constant u that is added to both projections of a relation.")


@SCORERS.register("triplere")
class TripleRE(PairRE):
    """TripleRE scorer. Relation rows [r^H | r^M | r^T], dim floats each; a tied r⁻¹ is [r^T | −r^M | r^H]."""

    Options = TripleREOptions

    def __init__(self, dim: int, options: TripleREOptions) -> None:
        super().__init__(dim, options)
        self.relation_width = 3 * dim
        self.offset = options.offset

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Compute query vectors [B, 2 dim]: h ∘ (r^H + u) + r^M, and r^T + u, which scales answers."""
        head_scale, translation, tail_scale = relation.chunk(3, dim=-1)
        point = F.normalize(anchor, dim=-1) * (head_scale + self.offset) + translation
        return torch.cat((point, tail_scale + self.offset), dim=-1)

    def inverse(self, relation: Tensor) -> Tensor:
        head_scale, translation, tail_scale = relation.chunk(3, dim=-1)
        return torch.cat((tail_scale, -translation, head_scale), dim=-1)
