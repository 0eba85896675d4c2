"""Curriculum of DANS-KGC: hardness bands of negatives, with their weights and margins over the training.

Bands are numbered by hardness, 0 the hardest: the vector after T/20 denoising steps from the end is nearest to a real
entity.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

BAND_NAMES = ("hardest", "hard", "easy", "easiest")
BANDS = len(BAND_NAMES)
SHARES = (1 / 20, 1 / 10, 1 / 5, 1 / 2)
"""Share of the diffusion steps whose vectors are the negatives of each band (equation 12)."""
HARDNESS = torch.tensor([1.0, 0.75, 0.5, 0.25])
"""Hardness of each band (equation 16)."""
_STARTS = torch.tensor([0.0, 0.25, 0.5, 0.75])

Curriculum = Literal["resolved", "paper", "none"]


def band_steps(steps: int) -> list[int]:
    """Return the step of each band in a diffusion of ``steps``.

    Raises:
        ValueError: so few steps that two bands have the same step.
    """
    steps_of_bands = [max(1, round(share * steps)) for share in SHARES]
    if len(set(steps_of_bands)) < BANDS:
        raise ValueError(
            f"{steps} diffusion steps are too few for {BANDS} bands at T/20, T/10, T/5 and T/2: use at least 20"
        )
    return steps_of_bands


def band_weights(progress: float, sharpness: float, curriculum: Curriculum, exponent: float = 1.0) -> Tensor:
    """Return the probability of each band at a progress of the training: float32 [4], hardest first.

    ``resolved`` goes from easy to hard: the logits are λ (2 τ - 1) hardness, equal at half of the training. ``paper``
    is equation 14 as printed, which favours the hardest band from the start and becomes more even later. ``none`` gives
    all bands the same probability at all times.
    """
    if curriculum == "none":
        return torch.full((BANDS,), 1 / BANDS)
    if curriculum == "paper":
        return torch.softmax(sharpness * (progress - _STARTS).clamp_min(0).pow(exponent) * (progress > _STARTS), 0)
    return torch.softmax(sharpness * (2 * progress - 1) * HARDNESS, 0)


def band_margins(progress: float, margin: float, growth: float) -> Tensor:
    """Return the margin of each band at a progress of the training: float32 [4] (equation 16)."""
    return margin * (1 + growth * HARDNESS * progress)
