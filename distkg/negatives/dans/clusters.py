"""Types of entities, from their vectors alone: clusters by k-means."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distkg.kernels.ann import cluster


def kinds_of(rows: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Clusters of vectors float32 [n, C]: the cluster of each, int64 [n], and their centres, float32 [k, C].

    ``count`` of them, by default √n / 2, at least two and never more than there are vectors.
    """
    wanted = count or max(2, round(math.sqrt(len(rows)) / 2))
    centres = cluster(rows, min(wanted, len(rows)))
    return torch.cdist(rows, centres).argmin(1), centres
