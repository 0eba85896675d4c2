"""TuckER (Balažević et al. 2019, arXiv 1901.09590): score = W ×₁ h ×₂ r ×₃ t with one core tensor W.

As in the paper, anchor and query are batch-normalised and have dropout, and the relation's matrix has dropout. Dropout
defaults are the paper's for FB15k-237 (.3, .4, .5); for WN18RR it uses .2, .2, .3. The core starts uniform in ±1. In
distributed runs batch-norm statistics are those of each rank's queries.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from distkg.embedding.scorers.base import SCORERS, Options, Scorer
from distkg.embedding.scorers.batch_norm import RowNorm
from distkg.embedding.scorers.initial import unit_variance_


class TuckEROptions(Options):
    relation_dim: int | None = Field(None, ge=1, description="Floats per relation; default: model.dim.")
    input_dropout: float = Field(0.3, ge=0, lt=1, description="Dropout of the normalised anchor.")
    matrix_dropout: float = Field(0.4, ge=0, lt=1, description="Dropout of the relation's dim×dim matrix.")
    output_dropout: float = Field(0.5, ge=0, lt=1, description="Dropout of the normalised query.")


@SCORERS.register("tucker")
class TuckER(Scorer):
    """TuckER scorer. The core [relation_dim, dim (anchor), dim (answer)] is shared by all relations.

    The dim×dim matrix of each query is a temporary of B·dim² floats.
    """

    Options = TuckEROptions
    bilinear = True

    def __init__(self, dim: int, options: TuckEROptions) -> None:
        options = options.model_copy(update={"relation_dim": options.relation_dim or dim})
        super().__init__(dim, options)
        self.relation_width = options.relation_dim or dim
        self.core = nn.Parameter(torch.empty(self.relation_width, dim, dim).uniform_(-1, 1))
        self.input_norm = RowNorm(dim)
        self.output_norm = RowNorm(dim)
        self.input_dropout = nn.Dropout(options.input_dropout)
        self.matrix_dropout = nn.Dropout(options.matrix_dropout)
        self.output_dropout = nn.Dropout(options.output_dropout)

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        anchor = self.input_dropout(self.input_norm(anchor))
        moved = torch.bmm(anchor.unsqueeze(1), self._matrix(self.operand(relation))).squeeze(1)
        return self.output_dropout(self.output_norm(moved))

    def operand(self, relation: Tensor) -> Tensor:
        """Return the matrices W ×₂ r with dropout, row by row: [B, dim²]."""
        return self.matrix_dropout(relation @ self.core.flatten(1))

    def cross_queries(self, anchor: Tensor, operand: Tensor) -> Tensor:
        anchor = self.input_dropout(self.input_norm(anchor))
        moved = torch.einsum("bi,rij->brj", anchor, self._matrix(operand))
        return self.output_dropout(self.output_norm(moved.flatten(0, 1))).view(moved.shape)

    def relation_queries(self, anchor: Tensor, answer: Tensor) -> Tensor:
        """Return outer products [B, dim²], with the running statistics of the query's batch norm, whose shift is the
        same for all relations of a pair."""
        variance = self.output_norm.running_var
        assert variance is not None
        scale = (variance + self.output_norm.eps).rsqrt() * self.output_norm.weight
        left, right = self.input_dropout(self.input_norm(anchor)), self.output_dropout(answer * scale)
        return (left.unsqueeze(2) * right.unsqueeze(1)).flatten(1)

    def forward_product(self, anchor: Tensor, relation: Tensor) -> Tensor:
        matrix = self._matrix(relation @ self.core.flatten(1))
        return torch.bmm(anchor.unsqueeze(1), matrix).squeeze(1)

    def dual_product(self, answer: Tensor, relation: Tensor) -> Tensor:
        matrix = self._matrix(relation @ self.core.flatten(1))
        return torch.bmm(matrix, answer.unsqueeze(2)).squeeze(2)

    def init_entities(self, rows: Tensor, generator: torch.Generator) -> None:
        unit_variance_(rows, rows.shape[-1], generator)

    def _matrix(self, operand: Tensor) -> Tensor:
        return operand.unflatten(-1, (self.dim, self.dim))
