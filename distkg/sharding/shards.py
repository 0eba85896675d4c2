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

    def splits(self, sorted_ids: Tensor) -> list[int]:
        """Count the sorted ids that each rank owns."""
        bounds = torch.tensor([self.range(w)[1] for w in range(self.size)], device=sorted_ids.device)
        ends = torch.searchsorted(sorted_ids, bounds.to(sorted_ids.dtype))
        return torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
