"""QuatE (Zhang et al. 2019, arXiv 1904.10281): score = (h ⊗ r/|r|) · t over quaternions.

Rows start as in the paper: φ (cos θ + u sin θ) with φ uniform in ±1/√(2n), n = dim/4, the angle θ uniform in
±π, and u an imaginary quaternion of length 1 made from uniform numbers in [0, 1).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.embedding.scorers.algebra import hamilton_product, moduli
from distkg.embedding.scorers.base import SCORERS, Options, Scorer, require_multiple


@SCORERS.register("quate")
class QuatE(Scorer):
    """Rows [real | i | j | k], dim/4 floats each; a tied r⁻¹ is the conjugate of r."""

    tied_inverse = True
    bilinear = True
    number_parts = 4

    def __init__(self, dim: int, options: Options) -> None:
        require_multiple(dim, 4, "quate")
        super().__init__(dim, options)

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        return hamilton_product(anchor, self.operand(relation))

    def operand(self, relation: Tensor) -> Tensor:
        """Return r/|r|."""
        return relation / moduli(relation, 4).repeat(1, 4)

    def cross_queries(self, anchor: Tensor, operand: Tensor) -> Tensor:
        return hamilton_product(anchor[:, None], operand)

    def relation_queries(self, anchor: Tensor, answer: Tensor) -> Tensor:
        return hamilton_product(self.inverse(anchor), answer)

    def inverse(self, relation: Tensor) -> Tensor:
        """Return the conjugate."""
        real, imaginary = relation.split((self.dim // 4, 3 * self.dim // 4), dim=-1)
        return torch.cat((real, -imaginary), dim=-1)

    def init_entities(self, rows: Tensor, generator: torch.Generator) -> None:
        count, bound = self.dim // 4, 1 / math.sqrt(2 * (self.dim // 4))
        blank = rows.new_empty(len(rows), count)
        modulus = blank.clone().uniform_(-bound, bound, generator=generator)
        angle = blank.clone().uniform_(-math.pi, math.pi, generator=generator)
        direction = rows.new_empty(len(rows), 3, count).uniform_(0, 1, generator=generator)
        imaginary = F.normalize(direction, dim=1) * (modulus * angle.sin()).unsqueeze(1)
        rows.copy_(torch.cat((modulus * angle.cos(), imaginary.flatten(1)), dim=1))
