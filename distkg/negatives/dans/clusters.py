"""Entity types as k-means clusters of entity vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distkg.kernels.nearest_neighbours import cluster


def kinds_of(rows: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Cluster vectors float32 [n, C]: return the cluster of each, int64 [n], and the centres, float32 [k, C].

    ``count`` is the number of clusters, by default √n / 2, at least two and never more than there are vectors.
    """
    clusters = count or max(2, round(math.sqrt(len(rows)) / 2))
    centres = cluster(rows, min(clusters, len(rows)))
    return torch.cdist(rows, centres).argmin(1), centres
