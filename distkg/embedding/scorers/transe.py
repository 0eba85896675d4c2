"""TransE (Bordes et al. 2013, section 2): score = −‖h + r − t‖, by the L1, the L2 or the squared L2 distance.

Vectors start with norm 1 as in the paper's Algorithm 1. Entities are not projected to the unit sphere after each step:
the objectives that later work uses with TransE (self-adversarial, cross entropy) do not need it.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from distkg.embedding.scorers.base import SCORERS, Options, Scorer
from distkg.embedding.scorers.initial import unit_length_
from distkg.kernels.compositions import SUM
from distkg.kernels.scores.similarity import L1, L2, SQUARED_L2

NORMS = {"l1": L1, "l2": L2, "squared_l2": SQUARED_L2}


class TransEOptions(Options):
    norm: Literal["l1", "l2", "squared_l2"] = Field("l1", description="Distance between h + r and t.")


@SCORERS.register("transe")
class TransE(Scorer):
    """TransE scorer. Relations are translations; a tied r⁻¹ is −r."""

    Options = TransEOptions
    tied_inverse = True
    composition = SUM

    def __init__(self, dim: int, options: TransEOptions) -> None:
        super().__init__(dim, options)
        self.similarity = NORMS[options.norm]

    def relation_queries(self, anchor: Tensor, answer: Tensor) -> Tensor:
        return answer - anchor

    def inverse(self, relation: Tensor) -> Tensor:
        return -relation

    def init_entities(self, rows: Tensor, generator: torch.Generator) -> None:
        unit_length_(rows, generator)
