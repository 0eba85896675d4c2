"""From a vector that was made to an entity.

A vector is no entity, and the paper does not say how it becomes one. The nearest will not do: in hundreds of
dimensions noise moves a vector away from all entities alike, so that the nearest stays nearest, and all bands are as
hard as each other. Noise counts here as what it hides: with a share of ``1 - ᾱ`` of noise in it, a vector stands for
the entity nearest to it among ``1 / (1 - ᾱ)`` random ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    places = len(candidates)
    closeness = vectors @ candidates.T - candidates.square().sum(1) / 2
    seen = (1 / noise).ceil()[..., None]
    start = torch.randint(places, noise.shape, generator=generator)[..., None]
    after = (torch.arange(places) - start) % places
    closeness.masked_fill_((after >= seen) | ~wrong[:, None], -torch.inf)
    best = closeness.max(2)
    return best.indices.masked_fill(best.values == -torch.inf, -1)
