"""DistMult (Yang et al. 2015, arXiv 1412.6575): score = Σ_i h_i r_i t_i.

Vectors start with length 1 on average: the paper keeps entities at that length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.scoring.base import SCORERS, Scorer
from distkg.scoring.initial import unit_variance_


@SCORERS.register("distmult")
class DistMult(Scorer):
    """Symmetric in its entities, so r⁻¹ = r where tied."""

    tied_inverse = True

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        return anchor * relation

    def inverse(self, relation: Tensor) -> Tensor:
        return relation

    def init_entities(self, rows: Tensor, generator: torch.Generator) -> None:
        unit_variance_(rows, self.dim, generator)
