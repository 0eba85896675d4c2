"""Interface of vectors that are read part by part, in memory or elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor


class RowBlocks(Protocol):
    """Vectors [n, C] that are read by slices or ids: a tensor, or vectors that lie elsewhere."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, which: Any, /) -> Tensor: ...
    def split(self, count: Any, /) -> Iterable[Tensor]: ...
