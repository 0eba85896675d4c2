"""Spread loss of training without negatives: keeps all vectors at one distance from their centre."""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.sharding.ranks import Ranks

_ROWS_AT_ONCE = 1 << 12


def spread(own: Tensor, radius: float, entities: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Compute the mean over all entities of (‖e − centre‖² − radius²)², where centre is the mean vector; collective.

    HaLE (Wang et al. 2022, arXiv 2201.00565, section 4.1.2) constrains the distance between each entity vector and the
    centre, without a formula; this is the squared error of that distance.

    Args:
        own: float32 [rows of this rank, D].
        radius: target distance from the centre.
        entities: number of rows over all ranks.
        ranks: ranks of the reduction.

    Returns:
        This rank's share of the loss, a scalar, and the gradient of the whole loss with respect to ``own``.
    """
    centre = own.sum(0)
    ranks.all_reduce(centre)
    away = own - centre / entities
    # By parts, because the squares of all rows would take as much memory as the gradient.
    excess = torch.cat([part.square().sum(1) for part in away.split(_ROWS_AT_ONCE)]) - radius**2
    gradient = away.mul_(excess[:, None]).mul_(4 / entities)
    moved_centre = gradient.sum(0)  # every vector moves the centre by 1/N of its own change
    ranks.all_reduce(moved_centre)
    gradient -= moved_centre / entities
    return torch.dot(excess, excess) / entities, gradient
