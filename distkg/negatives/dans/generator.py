"""Diffusion model of DANS-KGC: learns to remove noise from entity vectors, and stops before all noise is removed.

The vectors of four intermediate steps are negatives of four degrees of hardness (equation 12). The diffusion works on
vectors of mean 0 and standard deviation 1 in every dimension, so that the same noise means the same in every model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distkg.config import StrictModel
from distkg.negatives.dans.curriculum import band_steps
from distkg.negatives.dans.denoiser import Denoiser
from distkg.negatives.dans.difficulty import Difficulty
from distkg.negatives.dans.noise import Mode, NoiseSchedule
from distkg.sharding.flat import FlatParameters
from distkg.sharding.optimizers import OPTIMIZERS

BandSchedule = Literal["difficulty", "same"]


class GeneratorOptions(StrictModel):
    steps: int = Field(20, ge=20, description="Number of diffusion steps T.")
    first_noise: float = Field(1e-3, gt=0, lt=1, description="Noise variance before the first step, β_init.")
    low_noise: float = Field(
        0.05, gt=0, lt=1, description="Noise variance at the last step for an entity of difficulty 0."
    )
    high_noise: float = Field(
        0.3, gt=0, lt=1, description="Noise variance at the last step for an entity of difficulty 1, β_global."
    )
    sharpness: float = Field(1.0, ge=0, description="Exponent μ of the difficulty in the noise variance.")
    schedule: BandSchedule = Field(
        "difficulty", description="Noise schedule: difficulty (by entity) or same (for all entities)."
    )
    every_step: bool = Field(False, description="Denoise at every step; otherwise from band to band, in four passes.")
    hidden: int = Field(
        2, ge=1, description="Width of the denoiser's hidden layer, in multiples of the vector dimension."
    )
    conditions: bool = Field(True, description="Condition the denoiser on entity type, query and neighbourhood.")
    mode: Mode = Field(
        "resolved", description="resolved corrects the contradictions of the paper; paper follows it as printed."
    )
    learning_rate: float = Field(
        5e-3, gt=0, description="Learning rate of the denoiser and the difficulty network (Adam)."
    )


@dataclass(frozen=True)
class DenoiserConditions:
    """Conditions of the diffusion for b triples whose answers are to be replaced.

    Attributes:
        answer: int64 [b].
        vector: float32 [b, C], of the answers.
        kind: float32 [b, C], centre of the type of the anchors.
        query: float32 [b, Q].
        around: float32 [b, C], mean of sampled neighbours of the anchors.
    """

    answer: Tensor
    vector: Tensor
    kind: Tensor
    query: Tensor
    around: Tensor

    def repeat(self, count: int) -> DenoiserConditions:
        """Return every triple ``count`` times in a row."""
        return DenoiserConditions(*(part.repeat_interleave(count, 0) for part in vars(self).values()))

    def at(self, places: Tensor) -> DenoiserConditions:
        """Return the triples at these indices, int64 [p]."""
        return DenoiserConditions(*(part[places] for part in vars(self).values()))


class Generator(nn.Module):
    """Difficulty network and denoiser with their optimizer.

    Attributes:
        mean, deviation: float32 [C], of the vectors of all entities.
    """

    def __init__(self, options: GeneratorOptions, structure: Tensor, width: int, query: int) -> None:
        """Create the networks.

        Args:
            structure: float32 [n, s], standardised structural features.
            width: C, dimension of entity vectors.
            query: Q, dimension of query vectors.
        """
        super().__init__()
        self._options = options
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.difficulty = Difficulty(structure, width)
        self.denoiser = Denoiser(width, query, options.hidden, options.mode, conditions=options.conditions)
        self.steps = band_steps(options.steps)
        # PyTorch's own Adam takes a second to import modules that would never run here.
        self._flat = FlatParameters(self)
        self._optimizer = OPTIMIZERS["adam"](1, self._flat.values.shape[1], self._flat.values.device)

    def scale_to(self, vectors: Tensor) -> None:
        """Set mean and deviation from the vectors float32 [n, C] of all entities."""
        self.mean.copy_(vectors.mean(0))
        self.deviation.copy_(vectors.std(0).clamp_min(1e-6))

    def learn(self, known: DenoiserConditions, losses: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Take one training step and return its losses; ``losses`` float32 [b] are those of the triples as positives
        (equation 11)."""
        self.difficulty.look(known.answer, losses)
        clean = self._scaled(known.vector)
        step = torch.randint(1, self._options.steps + 1, known.answer.shape, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = self.schedule(known).noisy(clean, step, noise)
        denoising = F.mse_loss(self._predicted(noisy, step, known), noise)
        difficulty = self.difficulty.loss(known.answer, known.vector)
        (denoising + difficulty).backward()
        self._flat.step(self._optimizer, self._options.learning_rate)
        return {"denoising": float(denoising.detach()), "difficulty": float(difficulty.detach())}

    @torch.no_grad()
    def make(self, known: DenoiserConditions, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Generate vectors in place of the answers, float32 [b, bands, C], hardest band first, and return them with the
        share of noise in each, 1 - ᾱ: float32 [b, bands].

        Denoising starts from the answer with the full noise of the schedule, not from noise alone: with moderate noise
        these differ.
        """
        schedule, clean = self.schedule(known), self._scaled(known.vector)
        now = torch.full_like(known.answer, self._options.steps)
        vectors = schedule.noisy(clean, now, torch.randn(clean.shape, generator=generator))
        vectors_of_step = {}
        for step, to in pairwise(self._way_back()):
            noise = torch.randn(clean.shape, generator=generator)
            predicted = self._predicted(vectors, torch.full_like(known.answer, step), known)
            vectors_of_step[to] = vectors = schedule.back(vectors, step, to, predicted, noise, self._options.mode)
        generated = torch.stack([vectors_of_step[step] for step in self.steps], dim=1)
        noise = 1 - schedule.kept[:, torch.tensor(self.steps) - 1]
        return generated * self.deviation + self.mean, noise

    @torch.no_grad()
    def schedule(self, known: DenoiserConditions) -> NoiseSchedule:
        """Return the noise schedule of each answer; no gradient reaches the difficulty network from here."""
        options = self._options
        hard = self.difficulty(known.answer, known.vector)
        if options.schedule == "same":
            hard = torch.full_like(hard, 0.5)
        noise = {"first": options.first_noise, "low": options.low_noise, "high": options.high_noise}
        return NoiseSchedule.of_difficulty(hard, options.steps, sharpness=options.sharpness, **noise)

    def _way_back(self) -> list[int]:
        """Return the steps at which the denoiser is evaluated, followed by that of the hardest band, at which it is
        not."""
        last, hardest = self._options.steps, self.steps[0]
        return list(range(last, hardest - 1, -1)) if self._options.every_step else [last, *reversed(self.steps)]

    def _scaled(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) / self.deviation

    def _predicted(self, noisy: Tensor, step: Tensor, known: DenoiserConditions) -> Tensor:
        kind, around = self._scaled(known.kind), self._scaled(known.around)
        return self.denoiser(noisy, step, kind, F.normalize(known.query, dim=1), around)
