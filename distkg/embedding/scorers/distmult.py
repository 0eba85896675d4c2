"""DistMult (Yang et al. 2015, arXiv 1412.6575): score = Σ_i h_i r_i t_i.

Vectors start with norm 1 on average: the paper keeps entities at that norm. With ``distance: squared_l2`` the score is
−‖h ∘ r − t‖² (HaLE, Wang et al. 2022, arXiv 2201.00565, eq. 11), vectors start at 10⁻³ times a standard normal, and
relations add 1 or −1 at random. If all were near 1, every anchor would be its own nearest answer, and a symmetric
relation would stay there.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from distkg.embedding.scorers.base import SCORERS, Options, Scorer
from distkg.embedding.scorers.initial import unit_variance_
from distkg.kernels.compositions import PRODUCT
from distkg.kernels.scores.similarity import DOT, SQUARED_L2


class DistMultOptions(Options):
    distance: Literal["none", "squared_l2"] = Field(
        "none", description="Compare h∘r with t by the inner product (none), or by squared L2 distance."
    )


@SCORERS.register("distmult")
class DistMult(Scorer):
    """DistMult scorer. With the inner product it is symmetric in head and tail, so a tied r⁻¹ is r."""

    Options = DistMultOptions
    tied_inverse = True
    bilinear = True
    composition = PRODUCT

    def __init__(self, dim: int, options: DistMultOptions) -> None:
        super().__init__(dim, options)
        self.distance = options.distance != "none"
        self.similarity = SQUARED_L2 if self.distance else DOT
        self.bilinear = not self.distance
        self.tied_inverse = not self.distance  # h∘r near t does not imply t∘r near h

    def relation_queries(self, anchor: Tensor, answer: Tensor) -> Tensor | None:
        return None if self.distance else anchor * answer

    def inverse(self, relation: Tensor) -> Tensor:
        return relation

    def init_entities(self, rows: Tensor, generator: torch.Generator) -> None:
        if self.distance:
            rows.normal_(0, 1e-3, generator=generator)
        else:
            unit_variance_(rows, self.dim, generator)

    def init_relations(self, rows: Tensor, generator: torch.Generator) -> None:
        self.init_entities(rows, generator)
        if self.distance:
            rows += torch.randint(0, 2, rows.shape, generator=generator) * 2 - 1
