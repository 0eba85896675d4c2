"""TranS (Zhang et al. 2022, arXiv 2204.08401): score = −‖h ∘ (t′ + e) − t ∘ (h′ + e) + r̄ ∘ h + r + r̂ ∘ t‖₁.

InterHT with a relation of three vectors, of which two depend on the entities that it joins. Vectors of entities are as
in ``interht.py``; the constant e only says where r̄ and r̂ start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.embedding.scorers.base import SCORERS
from distkg.embedding.scorers.interht import InterHT, InterHTOptions


@SCORERS.register("trans")
class TranS(InterHT):
    """TranS scorer. Relation rows [r̄ | r | r̂], dim floats each; a tied r⁻¹ is [−r̂ | −r | −r̄]."""

    def __init__(self, dim: int, options: InterHTOptions) -> None:
        super().__init__(dim, options)
        self.relation_width = 3 * dim

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        vector, auxiliary = self.candidates(anchor).chunk(2, dim=-1)
        of_head, translation, of_tail = relation.chunk(3, dim=-1)
        return torch.cat((of_head * vector + translation, of_tail - auxiliary, vector), dim=-1)

    def inverse(self, relation: Tensor) -> Tensor:
        of_head, translation, of_tail = relation.chunk(3, dim=-1)
        return -torch.cat((of_tail, translation, of_head), dim=-1)
