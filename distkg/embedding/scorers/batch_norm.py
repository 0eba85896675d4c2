"""Batch normalisation for scorers with layers, also defined for batches of one query or none.

A worker's share of a last batch may be that small. In distributed runs each rank normalises by the statistics of its
own queries and keeps its own running statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn


class _SmallBatches(nn.modules.batchnorm._BatchNorm):
    """Batch norm that uses the running statistics for batches of fewer than two rows."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.shape[0] > 1:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class RowNorm(_SmallBatches, nn.BatchNorm1d):
    """Batch norm of vectors [B, channels]."""


class ImageNorm(_SmallBatches, nn.BatchNorm2d):
    """Batch norm of images [B, channels, height, width]."""


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Let every batch norm of a module normalise by its running statistics, and leave these as they are."""
    training = [
        each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm) and each.training
    ]
    for each in training:
        each.eval()
    try:
        yield
    finally:
        for each in training:
            each.train()
