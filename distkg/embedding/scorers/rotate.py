"""RotatE (Sun et al. 2019, arXiv 1902.10197): score = −Σ_j |h_j e^{iθ_j} − t_j|, θ the relation's phases.

The sum of moduli is the distance of the authors' reference implementation. With ``distance: squared_l2`` the score is
−Σ_j |h_j e^{iθ_j} − t_j|² (HaLE, Wang et al. 2022, arXiv 2201.00565, eq. 12) and entities start at 10⁻³ times a
standard normal.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from distkg.embedding.scorers.algebra import moduli, rotate
from distkg.embedding.scorers.base import SCORERS, Options, Scorer, require_multiple
from distkg.embedding.scorers.initial import margin_uniform_
from distkg.kernels.compositions import COMPLEX_PRODUCT
from distkg.kernels.scores.similarity import MODULUS, SQUARED_L2


class RotatEOptions(Options):
    gamma: float = Field(9.0, ge=0, description="Entities start uniform in ±(gamma + 2)/(dim/2); set to the margin.")
    distance: Literal["modulus", "squared_l2"] = Field("modulus", description="Sum of moduli, or of their squares.")


@SCORERS.register("rotate")
class RotatE(Scorer):
    """RotatE scorer. Entity rows [real half | imaginary half], relation rows dim/2 phases in radians; r⁻¹ has −θ."""

    Options = RotatEOptions
    tied_inverse = True
    composition = COMPLEX_PRODUCT

    def __init__(self, dim: int, options: RotatEOptions) -> None:
        require_multiple(dim, 2, "rotate")
        super().__init__(dim, options)
        self.relation_width = dim // 2
        self.gamma = options.gamma
        self.similarity = MODULUS if options.distance == "modulus" else SQUARED_L2

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        return rotate(anchor, relation)

    def operand(self, relation: Tensor) -> Tensor:
        return torch.cat((relation.cos(), relation.sin()), dim=-1)

    def inverse(self, relation: Tensor) -> Tensor:
        return -relation

    def factors(self, anchor: Tensor, relation: Tensor, answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # A rotation has modulus 1 for every phase, so there is nothing to penalise.
        return moduli(anchor), torch.zeros_like(relation), moduli(answer)

    def init_entities(self, rows: Tensor, generator: torch.Generator) -> None:
        if self.similarity is MODULUS:
            margin_uniform_(rows, self.gamma, self.dim // 2, generator)
        else:
            rows.normal_(0, 1e-3, generator=generator)

    def init_relations(self, rows: Tensor, generator: torch.Generator) -> None:
        rows.uniform_(-torch.pi, torch.pi, generator=generator)
