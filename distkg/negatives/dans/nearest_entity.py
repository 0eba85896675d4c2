"""Replacement of a generated vector by an entity.

The paper does not say how a vector becomes an entity. The nearest entity does not work: in hundreds of dimensions,
noise moves a vector away from all entities alike, so the nearest entity stays the same and all bands are equally hard.
Here noise limits the candidates: a vector with a noise share of ``1 - ᾱ`` is replaced by the entity nearest to it among
``1 / (1 - ᾱ)`` random ones.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel

MOST = 512  # maximum number of random candidates of a batch


def some_entities(entities: int, generator: torch.Generator) -> Tensor:
    """Return random candidate entities for a batch: int64 [p]; all entities if there are few."""
    if entities <= MOST:
        return torch.randperm(entities, generator=generator)
    return torch.randint(entities, (MOST,), generator=generator)


def nearest_of_some(
    vectors: Tensor, noise: Tensor, candidates: Tensor, wrong: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the index of the candidate that replaces each vector: int64 [b, m], -1 if no wrong answer was among its
    candidates.

    Args:
        vectors: float32 [b, m, C].
        noise: float32 [b, m], 1 - ᾱ, the share of noise in each.
        candidates: float32 [p, C], of random entities.
        wrong: bool [b, p], True where a candidate is a wrong answer.
    """
    places = torch.randint(len(candidates), noise.shape, generator=generator)
    seen = (1 / noise).ceil().clamp_max(len(candidates)).long()
    halves = candidates.square().sum(1) / 2
    _search(*(part.numpy() for part in (vectors, seen, candidates, halves, wrong, places)))
    return places


@kernel
def _search(
    vectors: np.ndarray,
    seen: np.ndarray,
    candidates: np.ndarray,
    halves: np.ndarray,
    wrong: np.ndarray,
    places: np.ndarray,
) -> None:
    """Replace start indices [b, m] by the index of the nearest wrong candidate; ``seen`` candidates from the start
    are considered, cyclically."""
    for i in range(vectors.shape[0]):
        for j in range(vectors.shape[1]):
            start, best, closest = places[i, j], -1, np.float32(0)
            for step in range(seen[i, j]):
                c = (start + step) % candidates.shape[0]
                if not wrong[i, c]:
                    continue
                closeness = -halves[c]
                for k in range(vectors.shape[2]):
                    closeness += vectors[i, j, k] * candidates[c, k]
                if best < 0 or closeness > closest:
                    best, closest = c, closeness
            places[i, j] = best
