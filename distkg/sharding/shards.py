"""Assignment of rows to ranks: equal contiguous ranges of entity ids, one per rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shards:
    """Partition of ``rows`` ids into ``size`` contiguous ranges of ``ceil(rows / size)``; the last may be shorter or
    empty.

    >>> shards = Shards(rows=10, size=4)
    >>> [shards.range(w) for w in range(4)]
    [(0, 3), (3, 6), (6, 9), (9, 10)]
    """

    rows: int
    size: int

    @property
    def per_rank(self) -> int:
        return -(-self.rows // self.size)

    def range(self, rank: int) -> tuple[int, int]:
        """Return the first id and one past the last id of ``rank``."""
        low = min(rank * self.per_rank, self.rows)
        return low, min(low + self.per_rank, self.rows)

    def count(self, rank: int) -> int:
        low, high = self.range(rank)
        return high - low

    def counts_of(self, sorted_ids: Tensor) -> Tensor:
        """Count the distinct sorted ids that each rank owns, of which the last may be repeated: int64 [size]."""
        bounds = (torch.arange(1, self.size + 1, device=sorted_ids.device) * self.per_rank).clamp_max(self.rows)
        ends = torch.searchsorted(sorted_ids, bounds)
        if len(sorted_ids):
            ends = torch.minimum(ends, torch.searchsorted(sorted_ids, sorted_ids[-1:]) + 1)
        return torch.diff(ends, prepend=ends.new_zeros(1))
