"""InterHT (Wang et al. 2022, arXiv 2202.04897): score = −‖h ∘ (t′ + e) − t ∘ (h′ + e) + r‖₁.

Every entity has a vector and an auxiliary vector, h and h′, each scaled to length 1; e is the vector of ones. Rows
start uniform in ±(γ + 2)/dim, as in the authors' reference settings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distkg.embedding.scorers.base import SCORERS, Options, Scorer
from distkg.embedding.scorers.initial import margin_uniform_
from distkg.kernels.scores.similarity import AFFINE_L1


class InterHTOptions(Options):
    gamma: float = Field(6.0, ge=0, description="Rows start uniform in ±(gamma + 2)/dim; set to the margin.")


@SCORERS.register("interht")
class InterHT(Scorer):
    """InterHT scorer. Entity rows [vector | auxiliary vector], relation rows r, dim floats each; a tied r⁻¹ is −r."""

    Options = InterHTOptions
    tied_inverse = True
    similarity = AFFINE_L1

    def __init__(self, dim: int, options: InterHTOptions) -> None:
        super().__init__(dim, options)
        self.entity_width = 2 * dim
        self.gamma = options.gamma

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Compute query vectors [B, 3 dim]: the constant r, and what the similarity multiplies t and t′ + e by."""
        vector, auxiliary = self.candidates(anchor).chunk(2, dim=-1)
        return torch.cat((relation, -auxiliary, vector), dim=-1)

    def candidates(self, rows: Tensor) -> Tensor:
        """Return the candidate vectors [N, 2 dim] of entity rows: t, and t′ + e."""
        vector, auxiliary = rows.chunk(2, dim=-1)
        return torch.cat((F.normalize(vector, dim=-1), F.normalize(auxiliary, dim=-1) + 1), dim=-1)

    def answer_rows(self, anchor: Tensor, query: Tensor) -> Tensor:
        constant, of_vector, of_auxiliary = query.chunk(3, dim=-1)
        square = of_vector.square()  # the vector solves q + a ∘ t + b = 0, where t′ is near 0
        vector = -(constant + of_auxiliary) * of_vector / (square + square.mean(-1, keepdim=True))
        return torch.cat((vector, anchor[..., self.dim :]), dim=-1)

    def inverse(self, relation: Tensor) -> Tensor:
        return -relation

    def init_entities(self, rows: Tensor, generator: torch.Generator) -> None:
        margin_uniform_(rows, self.gamma, self.dim, generator)
