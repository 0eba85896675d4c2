"""Vectors of entities in the arrays that workers have published, read where they lie."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distkg.negatives.prefetch.pool_client import Vectors

HALF_MAX = float(np.finfo(np.float16).max)
_ROWS_AT_ONCE = 1 << 14


class PublishedRows:
    """Vectors of all entities, float32 as read: published shards, and newer vectors of some entities.

    Shards are not copied: those of Ray's object store are mapped by all actors of a node and lie there once. Newer
    vectors have memory of this process. Behaves as a tensor [entities, C] that is read by slices or ids.
    """

    def __init__(self, shards: Sequence[NDArray[Vectors]] = (), device: torch.device | str = "cpu") -> None:
        """Take over shards float32 or float16 [rows, C] that together hold all entities in order."""
        self._shards = [_mapped(shard).to(device) for shard in shards]
        self._ends = torch.tensor(np.cumsum([len(shard) for shard in shards], dtype=np.int64))
        self._device = torch.device(device)
        self._place = torch.empty(0, dtype=torch.int32)  # of an entity among the newer vectors; -1 for none
        self._newer = torch.empty(0)
        self._count = 0

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self._shards[0].shape[1] if self._shards else 0

    def replace(self, entities: Tensor, vectors: Tensor) -> None:
        """Set newer vectors float32 [k, C] of entities int64 [k]."""
        if not len(self._place):
            self._place = torch.full((len(self),), -1, dtype=torch.int32, device=self._device)
        fresh = entities[self._place[entities] < 0].unique()
        self._place[fresh] = torch.arange(self._count, self._count + len(fresh), dtype=torch.int32, device=self._device)
        self._count += len(fresh)
        if self._count > len(self._newer):
            larger = torch.empty(min(2 * self._count, len(self)), self.shape[1], device=self._device)
            if len(self._newer):
                larger[: len(self._newer)] = self._newer
            self._newer = larger
        self._newer[self._place[entities].long()] = vectors

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """Return vectors float32 of a slice [n, C], or of entities int64 of any shape [..., C]; maybe read-only."""
        return self._slice(which) if isinstance(which, slice) else self._take(which)

    def split(self, count: int) -> Iterator[Tensor]:
        """Yield the vectors of ``count`` entities after the other."""
        return (self[low : low + count] for low in range(0, len(self), count))

    def cpu(self) -> PublishedRows:
        """Return the same vectors, whose parts are read as they are used."""
        return self

    def _slice(self, which: slice) -> Tensor:
        low, high, _ = which.indices(len(self))
        parts, first = [], 0
        for shard in self._shards:
            part = shard[max(low - first, 0) : max(high - first, 0)]
            first += len(shard)
            if len(part):
                parts.append(part)
        if not parts:
            return torch.empty(0, self.shape[1], device=self._device)
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        if not len(self._place):
            return rows.float()
        places = self._place[low:high]
        return self._with_newer(rows.float(), places) if bool((places >= 0).any()) else rows.float()

    def _take(self, entities: Tensor) -> Tensor:
        ids = entities.to(self._device).flatten()
        if len(self._shards) == 1:
            rows = self._shards[0].index_select(0, ids).float()
        else:
            rows, owner = torch.empty(len(ids), self.shape[1], device=self._device), self._owner(ids)
            for place, shard in enumerate(self._shards):
                mine = owner == place
                rows[mine] = shard[ids[mine] - (int(self._ends[place]) - len(shard))].float()
        if len(self._place):
            rows = self._with_newer(rows, self._place[ids])
        return rows.view(*entities.shape, self.shape[1])

    def _owner(self, ids: Tensor) -> Tensor:
        return torch.searchsorted(self._ends.to(self._device), ids, right=True)

    def _with_newer(self, rows: Tensor, places: Tensor) -> Tensor:
        return torch.where((places >= 0)[:, None], self._newer[places.clamp_min(0).long()], rows)


def half_precision(vectors: Tensor) -> NDArray[np.float16]:
    """Return vectors float32 [n, C] rounded to float16, and limited to its range, a part of them at a time."""
    out = np.empty(tuple(vectors.shape), np.float16)
    for low in range(0, len(vectors), _ROWS_AT_ONCE):
        out[low : low + _ROWS_AT_ONCE] = vectors[low : low + _ROWS_AT_ONCE].clamp(-HALF_MAX, HALF_MAX).cpu().numpy()
    return out


def _mapped(shard: NDArray[Vectors]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the array is read-only, and so is this class
        return torch.from_numpy(shard)
