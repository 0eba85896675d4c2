"""Denoising network: predicts the noise in a vector from the vector, the step and conditions on the query.

DANS-KGC prints a layer normalisation of the prediction (equation 10), which would force its mean to 0 and its norm to
one value, and omits the query that the text names. The mode ``resolved`` corrects both, the first as in DHNS (Niu,
Zhang 2025); ``paper`` is the equation as printed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distkg.kernels.products import half_where_fast
from distkg.negatives.dans.noise import Mode

TIME_FLOATS = 32


class Denoiser(nn.Module):
    """Noise prediction ε(x_t, t, conditions)."""

    def __init__(
        self, width: int, query: int, hidden: int, mode: Mode = "resolved", *, conditions: bool = True
    ) -> None:
        """Create the network.

        Args:
            width: C, dimension of entity vectors.
            query: Q, dimension of query vectors.
            hidden: width of the hidden layer, in multiples of C.
            mode: ``resolved`` normalises before each layer and uses the query and the neighbourhood.
            conditions: False for inputs of the vector and the step alone.
        """
        super().__init__()
        self._mode, self._conditions = mode, conditions
        seen = 0 if not conditions else width if mode == "paper" else 2 * width + query
        inner, hidden = width + TIME_FLOATS + seen, hidden * width
        if mode == "paper":
            layers = [nn.Linear(inner, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.LayerNorm(width)]
        else:
            normed = nn.LayerNorm(inner), nn.LayerNorm(hidden)
            layers = [normed[0], nn.Linear(inner, hidden), nn.ReLU(), normed[1], nn.Linear(hidden, width)]
        self.network = nn.Sequential(*layers)

    def forward(self, noisy: Tensor, step: Tensor, kind: Tensor, query: Tensor, around: Tensor) -> Tensor:
        """Return the predicted noise float32 [b, C].

        Args:
            noisy: float32 [b, C], x_t.
            step: int64 [b].
            kind: float32 [b, C], centre of the entities of the same type.
            query: float32 [b, Q], of the observed entity and the relation.
            around: float32 [b, C], mean vector of sampled neighbours.
        """
        inputs = [noisy, time_features(step)]
        if self._conditions:
            inputs += [kind] if self._mode == "paper" else [kind, query, around]
        with half_where_fast(noisy.device):
            noise: Tensor = self.network(torch.cat(inputs, dim=1))
        return noise.float()


def time_features(step: Tensor) -> Tensor:
    """Return sines and cosines of a step int64 [b] at geometric frequencies: float32 [b, 32] (Vaswani et al. 2017)."""
    half = TIME_FLOATS // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=step.device) / half)
    angles = step[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
