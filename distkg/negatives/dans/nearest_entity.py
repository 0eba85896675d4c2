"""From a vector that was made to an entity.

A vector is no entity, and the paper does not say how it becomes one. The nearest will not do: in hundreds of
dimensions noise moves a vector away from all entities alike, so that the nearest stays nearest, and all bands are as
hard as each other. Noise counts here as what it hides: with a share of ``1 - ᾱ`` of noise in it, a vector stands for
the entity nearest to it among ``1 / (1 - ᾱ)`` random ones.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel

MOST = 512  # random entities looked at for a batch


def some_entities(entities: int, generator: torch.Generator) -> Tensor:
    """Random entities to be looked at for a batch: int64 [p], all of them where there are few."""
    if entities <= MOST:
        return torch.randperm(entities, generator=generator)
    return torch.randint(entities, (MOST,), generator=generator)


def nearest_of_some(
    vectors: Tensor, noise: Tensor, candidates: Tensor, wrong: Tensor, generator: torch.Generator
) -> Tensor:
    """The place of the candidate that each vector stands for: int64 [b, m], -1 where it saw none that is wrong.

    Args:
        vectors: float32 [b, m, C].
        noise: float32 [b, m], 1 - ᾱ, the share of noise in each.
        candidates: float32 [p, C], of random entities.
        wrong: bool [b, p], where a candidate is a wrong answer.
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
    """Turn the places [b, m] from which so many candidates are seen, round a circle, into those of the nearest."""
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
