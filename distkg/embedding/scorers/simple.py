"""SimplE (Kazemi and Poole 2018, arXiv 1802.04868).

score = ½ (⟨h_head, r, t_tail⟩ + ⟨t_head, r⁻¹, h_tail⟩): every entity has a vector for each role.
Entries start uniform in ±6/√(dim/2), as in the authors' reference settings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distkg.embedding.scorers.base import SCORERS, Options, Scorer, require_multiple


@SCORERS.register("simple")
class SimplE(Scorer):
    """SimplE scorer. Entity rows [head vector | tail vector], relation rows [r | r⁻¹], dim/2 floats each; a tied r⁻¹
    swaps the two."""

    tied_inverse = True
    bilinear = True

    def __init__(self, dim: int, options: Options) -> None:
        require_multiple(dim, 2, "simple")
        super().__init__(dim, options)

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        return swap_halves(anchor * relation) / 2

    def relation_queries(self, anchor: Tensor, answer: Tensor) -> Tensor:
        return anchor * swap_halves(answer) / 2

    def inverse(self, relation: Tensor) -> Tensor:
        return swap_halves(relation)

    def init_entities(self, rows: Tensor, generator: torch.Generator) -> None:
        bound = 6 / math.sqrt(self.dim / 2)
        rows.uniform_(-bound, bound, generator=generator)


def swap_halves(rows: Tensor) -> Tensor:
    """Swap the halves [x | y] of the last dimension to [y | x]."""
    first, second = rows.chunk(2, dim=-1)
    return torch.cat((second, first), dim=-1)
