"""CP, the canonical decomposition (Hitchcock 1927; Lacroix et al. 2018, arXiv 1806.07297).

score = Σ_i h_i r_i t_i, where an entity has one vector as anchor and another as answer. Both start at 10⁻³ times a
standard normal, as in the reference settings of Lacroix et al.; inverse relations must be learned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.embedding.scorers.base import SCORERS, Options, Scorer


@SCORERS.register("cp")
class CP(Scorer):
    """CP scorer. Entity rows [anchor vector | answer vector], dim floats each."""

    bilinear = True

    def __init__(self, dim: int, options: Options) -> None:
        super().__init__(dim, options)
        self.entity_width = 2 * dim

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        return anchor[..., : self.dim] * relation

    def relation_queries(self, anchor: Tensor, answer: Tensor) -> Tensor:
        return anchor[..., : self.dim] * self.candidates(answer)

    def dual_product(self, answer: Tensor, relation: Tensor) -> Tensor:
        return self.candidates(answer) * relation

    def answer_rows(self, anchor: Tensor, query: Tensor) -> Tensor:
        return torch.cat((anchor[..., : self.dim], query), dim=-1)

    def candidates(self, rows: Tensor) -> Tensor:
        return rows[..., self.dim :]

    def factors(self, anchor: Tensor, relation: Tensor, answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return anchor[..., : self.dim].abs(), relation.abs(), self.candidates(answer).abs()
