"""How far a table of vectors is from lying at one distance from its centre: what non-negative training pushes by."""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.sharding.ranks import Ranks


def spread(own: Tensor, radius: float, entities: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Mean over all entities of (‖e − centre‖² − radius²)², the centre being the mean of all vectors.

    HaLE (Wang et al. 2022, arXiv 2201.00565, section 4.1.2) says in words that the distance between each entity
    vector and the centre is constrained; this is the square loss of that distance. Collective.

    Args:
        own: float32 [rows of this rank, D].
        radius: the distance to keep.
        entities: rows of all ranks.
        ranks: whom to find the centre with.

    Returns:
        This rank's share of the loss, a scalar, and the gradient of the whole loss by ``own``.
    """
    centre = own.sum(0)
    ranks.all_reduce(centre)
    away = own - centre / entities
    excess = away.square().sum(1) - radius**2
    gradient = away.mul_(excess[:, None]).mul_(4 / entities)
    moved_centre = gradient.sum(0)  # every vector moves the centre by 1/N of its own way
    ranks.all_reduce(moved_centre)
    gradient -= moved_centre / entities
    return torch.dot(excess, excess) / entities, gradient
