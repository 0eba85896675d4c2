"""RotE (Chami et al. 2020, arXiv 2005.00545): score = −‖Rot(r, h) + r′ − t‖².

With ``bias: true`` it is the paper's score, −‖·‖² + b_h + b_t; the default has no biases, as in HaLE (Wang et al. 2022,
arXiv 2201.00565). With biases the score is still one inner product,

    −‖q − c‖² + b_h + b_t = [2q, 1, b_h − ‖q‖²] · [c, b_t − ‖c‖², 1].

Vectors start at 10⁻³ times a standard normal and biases at 0, as in the authors' reference settings; angles
uniform in ±π.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from distkg.embedding.scorers.algebra import rotate
from distkg.embedding.scorers.base import SCORERS, Options, Scorer, require_multiple
from distkg.kernels.scores.similarity import DOT, SQUARED_L2


class RotEOptions(Options):
    bias: bool = Field(False, description="Learned bias for each entity, stored as the last column of its row.")


@SCORERS.register("rote")
class RotE(Scorer):
    """RotE scorer. Relation rows [angles dim/2 | translation dim]; r⁻¹ rotates by −θ, translates by −Rot(−θ, r′)."""

    Options = RotEOptions
    tied_inverse = True

    def __init__(self, dim: int, options: RotEOptions) -> None:
        require_multiple(dim, 2, "rote")
        super().__init__(dim, options)
        self.relation_width = dim // 2 + dim
        self.bias = options.bias
        self.entity_width = dim + options.bias
        self.similarity = DOT if options.bias else SQUARED_L2

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        angle, translation = relation.split((self.dim // 2, self.dim), dim=-1)
        moved = rotate(anchor[..., : self.dim], angle) + translation
        if not self.bias:
            return moved
        constant = anchor[..., self.dim :] - squared_length(moved)
        return torch.cat((2 * moved, torch.ones_like(constant), constant), dim=-1)

    def answer_rows(self, anchor: Tensor, query: Tensor) -> Tensor:
        return torch.cat((query[..., : self.dim], anchor[..., self.dim :]), dim=-1)

    def candidates(self, rows: Tensor) -> Tensor:
        if not self.bias:
            return rows
        vector, bias = rows.split((self.dim, 1), dim=-1)
        return torch.cat((vector, bias - squared_length(vector), torch.ones_like(bias)), dim=-1)

    def inverse(self, relation: Tensor) -> Tensor:
        angle, translation = relation.split((self.dim // 2, self.dim), dim=-1)
        return torch.cat((-angle, -rotate(translation, -angle)), dim=-1)

    def factors(self, anchor: Tensor, relation: Tensor, answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vectors = anchor[..., : self.dim], relation[..., self.dim // 2 :], answer[..., : self.dim]
        return vectors[0].abs(), vectors[1].abs(), vectors[2].abs()

    def init_entities(self, rows: Tensor, generator: torch.Generator) -> None:
        rows.normal_(0, 1e-3, generator=generator)
        rows[:, self.dim :].zero_()

    def init_relations(self, rows: Tensor, generator: torch.Generator) -> None:
        rows.normal_(0, 1e-3, generator=generator)
        rows[:, : self.dim // 2].uniform_(-torch.pi, torch.pi, generator=generator)


def squared_length(rows: Tensor) -> Tensor:
    """Return ‖·‖² along the last dimension, which is kept: [..., 1]."""
    return rows.square().sum(dim=-1, keepdim=True)
