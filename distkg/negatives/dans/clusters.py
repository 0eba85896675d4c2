"""Entity types as k-means clusters of entity vectors, and distances between entities, in bounded memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distkg.kernels.nearest_neighbours import RowBlocks

SAMPLE = 1 << 16  # entities from which statistics are computed: all, in a graph of usual size
PER_CLUSTER = 256  # sampled entities per cluster, more than which FAISS does not use
_ROWS_AT_ONCE = 1 << 13


def default_kinds(entities: int) -> int:
    """Return the number of clusters of n entities: √n / 2, at least two."""
    return max(2, round(math.sqrt(entities) / 2))


def sampled_entities(entities: int, clusters: int) -> Tensor:
    """Return the ids from which clusters are learned: int64, all entities up to ``SAMPLE``."""
    return spread(max(SAMPLE, PER_CLUSTER * clusters), entities)


def spread(count: int, entities: int) -> Tensor:
    """Return ``count`` ids spread evenly over the entities, or all: int64, ascending."""
    taken = min(count, entities)
    return torch.arange(taken) * (entities - 1) // max(taken - 1, 1)


def nearest_centres(rows: RowBlocks, centres: Tensor) -> Tensor:
    """Return the nearest of centres float32 [k, C] to each vector float32 [n, C]: int32 [n]."""
    parts = [torch.cdist(part.cpu(), centres).argmin(1).int() for part in rows.split(_ROWS_AT_ONCE)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)


def two_nearest(some: Tensor, rows: RowBlocks) -> Tensor:
    """Return the two smallest distances of vectors [s, C] to vectors float32 [n, C]: float32 [s, 2], infinite where
    there are fewer."""
    best = torch.full((len(some), 2), torch.inf)
    for part in rows.split(_ROWS_AT_ONCE):
        best = torch.cat([best, torch.cdist(some, part.cpu())], 1).topk(2, dim=1, largest=False).values
    return best
