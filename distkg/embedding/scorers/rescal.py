"""RESCAL (Nickel et al. 2011, section 3): score = hᵀ W t with a full matrix W for every relation.

Entities start with norm 1 on average, and matrices such that they preserve it (Glorot and Bengio 2010, for one dim×dim
matrix). The paper fits by alternating least squares and gives no scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.embedding.scorers.base import SCORERS, Options, Scorer
from distkg.embedding.scorers.initial import unit_variance_


@SCORERS.register("rescal")
class RESCAL(Scorer):
    """RESCAL scorer. Relation rows hold W row by row, dim² floats; a tied r⁻¹ has the transpose of W."""

    tied_inverse = True
    bilinear = True

    def __init__(self, dim: int, options: Options) -> None:
        super().__init__(dim, options)
        self.relation_width = dim * dim

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        return torch.bmm(anchor.unsqueeze(1), self._matrix(relation)).squeeze(1)

    def cross_queries(self, anchor: Tensor, operand: Tensor) -> Tensor:
        return torch.einsum("bi,rij->brj", anchor, self._matrix(operand))

    def relation_queries(self, anchor: Tensor, answer: Tensor) -> Tensor:
        return (anchor.unsqueeze(2) * answer.unsqueeze(1)).flatten(1)

    def inverse(self, relation: Tensor) -> Tensor:
        return self._matrix(relation).transpose(1, 2).flatten(1)

    def init_entities(self, rows: Tensor, generator: torch.Generator) -> None:
        unit_variance_(rows, self.dim, generator)

    def _matrix(self, relation: Tensor) -> Tensor:
        return relation.unflatten(-1, (self.dim, self.dim))
