"""Noise schedule of the diffusion, and its reverse steps.

Equations are those of DANS-KGC (arXiv 2511.07901). ``resolved`` uses the reverse steps of DDPM (Ho et al. 2020),
``paper`` those of equation 9 as printed, whose coefficient differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Mode = Literal["resolved", "paper"]


@dataclass(frozen=True)
class NoiseSchedule:
    """Variances of the noise added at steps 1 … T, for each of b entities.

    Attributes:
        added: float32 [b, T], β of each step (equation 3).
        kept: float32 [b, T], ᾱ: the remaining share of a vector's square after each step.
    """

    added: Tensor
    kept: Tensor

    @classmethod
    def of_difficulty(
        cls, difficulty: Tensor, steps: int, *, first: float, low: float, high: float, sharpness: float
    ) -> NoiseSchedule:
        """Build a schedule with more noise for harder entities: up to ``low`` + (``high`` - ``low``) ζ^μ at the last
        step (equation 2).

        Args:
            difficulty: float32 [b], ζ in [0, 1].
            steps: T.
            first: β before the first step.
            low, high: largest β of an entity of difficulty 0 and 1.
            sharpness: μ.
        """
        largest = low + (high - low) * difficulty.pow(sharpness)
        part = torch.arange(1, steps + 1, dtype=torch.float32, device=difficulty.device) / steps
        added = first + part * (largest[:, None] - first)
        return cls(added, (1 - added).cumprod(1))

    @property
    def steps(self) -> int:
        return self.added.shape[1]

    def noisy(self, vectors: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Return vectors [b, C] after ``step`` int64 [b] in 1 … T steps with ``noise`` [b, C] (equation 6)."""
        kept = self.kept.gather(1, step[:, None] - 1)
        return kept.sqrt() * vectors + (1 - kept).sqrt() * noise

    def back(self, vectors: Tensor, step: int, to: int, predicted: Tensor, noise: Tensor, mode: Mode) -> Tensor:
        """Return vectors [b, C] of step ``to`` from those of a later ``step`` and the noise predicted in them.

        Several steps are reversed as one, with the variance of all of them together (Nichol, Dhariwal 2021, section 4).
        Fresh ``noise`` [b, C] is added, none at step 0.
        """
        kept = self.kept[:, step - 1, None]
        kept_between = kept / self.kept[:, to - 1, None] if to else kept
        added, scale = 1 - kept_between, kept_between.sqrt()
        if mode == "paper":
            coefficient = (1 - scale) / (scale * added.sqrt())
            return vectors / scale - coefficient * predicted + added.sqrt() * noise
        mean = (vectors - added / (1 - kept).sqrt() * predicted) / scale
        return mean + added.sqrt() * noise if to else mean
