"""HAKE (Zhang et al. 2020, arXiv 1911.09419): moduli for levels of a hierarchy, and phases for entities of a level.

score = −λ₁ ‖h_m ∘ (|r_m| + r′) − t_m ∘ (1 − r′)‖₂ − λ₂ ‖sin((h_p + r_p − t_p) / 2)‖₁ with −|r_m| ≤ r′ ≤ 1, the
mixture bias of section 4.2, and learned weights λ. As in the authors' reference settings, rows start uniform in ±b with
b = (γ + 2)/(dim/2), r_m at 1 and r′ at 0; phases are stored in units of b/π radians, so that they are as large as
moduli and one learning rate suits both; and λ₂ is in units of b.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from distkg.embedding.scorers.base import SCORERS, Options, Scorer, require_multiple
from distkg.embedding.scorers.initial import margin_uniform_
from distkg.kernels.scores.polar_distance import PolarSimilarity


class HAKEOptions(Options):
    gamma: float = Field(6.0, ge=0, description="Rows start uniform in ±(gamma + 2)/(dim/2); set to the margin.")
    modulus_weight: float = Field(1.0, gt=0, description="Weight of the distance of moduli, at the start.")
    phase_weight: float = Field(
        0.5, gt=0, description="Weight of the distance of phases, at the start, times (gamma + 2)/(dim/2)."
    )


@SCORERS.register("hake")
class HAKE(Scorer):
    """HAKE scorer. Entity rows [moduli | phases], relation rows [phases | moduli r_m | biases r′], dim/2 floats each.

    A tied r⁻¹ is [−r_p | r_m | 1 − |r_m| − r′]. Of learned weights, the absolute values count.
    """

    Options = HAKEOptions
    tied_inverse = True

    def __init__(self, dim: int, options: HAKEOptions) -> None:
        require_multiple(dim, 2, "hake")
        super().__init__(dim, options)
        self.numbers, self.gamma = dim // 2, options.gamma
        self.relation_width = 3 * self.numbers
        self.similarity = PolarSimilarity(self.numbers)
        bound = (options.gamma + 2) / self.numbers
        self.radians = math.pi / bound
        self.weights = nn.Parameter(torch.tensor([options.modulus_weight, options.phase_weight * bound]))

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Compute query vectors [B, 5 dim/2]: the anchor's moduli and the answers' scale, 0, and −cos and sin of half
        the phase, by which the similarity multiplies sin and cos of the answers'."""
        (moduli, phases), (turn, own, bias) = anchor.chunk(2, dim=-1), relation.chunk(3, dim=-1)
        size = own.abs()
        bias = torch.maximum(bias.clamp_max(1), -size)
        angle = (phases + turn) * (self.radians / 2)
        radial, angular = self.weights.abs()
        circle = torch.cat((-angle.cos(), angle.sin()), dim=-1) * angular
        point = torch.cat((moduli * (size + bias), 1 - bias), dim=-1) * radial
        return torch.cat((point, torch.zeros_like(moduli), circle), dim=-1)

    def candidates(self, rows: Tensor) -> Tensor:
        """Return the candidate vectors [N, 3 dim/2] of entity rows: moduli, and sin and cos of half the phases."""
        moduli, phases = rows.chunk(2, dim=-1)
        angle = phases * (self.radians / 2)
        return torch.cat((moduli, angle.sin(), angle.cos()), dim=-1)

    def answer_rows(self, anchor: Tensor, query: Tensor) -> Tensor:
        point, scale, _, cosine, sine = query.chunk(5, dim=-1)
        square = scale.square()
        moduli = point * scale / (square + square.mean(-1, keepdim=True))  # bounded where the scale is near 0
        return torch.cat((moduli, torch.atan2(sine, -cosine) * (2 / self.radians)), dim=-1)

    def inverse(self, relation: Tensor) -> Tensor:
        turn, own, bias = relation.chunk(3, dim=-1)
        return torch.cat((-turn, own, 1 - own.abs() - bias), dim=-1)

    def factors(self, anchor: Tensor, relation: Tensor, answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Phases have no magnitude.
        of_anchor, of_answer = anchor[..., : self.numbers].abs(), answer[..., : self.numbers].abs()
        return of_anchor, relation[..., self.numbers : 2 * self.numbers].abs(), of_answer

    def init_entities(self, rows: Tensor, generator: torch.Generator) -> None:
        margin_uniform_(rows, self.gamma, self.numbers, generator)

    def init_relations(self, rows: Tensor, generator: torch.Generator) -> None:
        super().init_relations(rows, generator)
        rows[:, self.numbers : 2 * self.numbers].fill_(1)
        rows[:, 2 * self.numbers :].zero_()
