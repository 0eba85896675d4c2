"""Table of rows that stay in the files of a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards


@dataclass(frozen=True)
class StoredRows:
    """Rows of a tensor in one file, which stays open, so that the rows can be read after the file has been deleted.

    Attributes:
        file: descriptor of the file.
        offset: position of the first row, bytes.
        low, high: first row, and one past the last.
    """

    file: int
    offset: int
    low: int
    high: int


class StoredTable:
    """Table of ``shards.rows`` rows that are read, never held, by any number of ranks.

    Each rank stands for a range of rows, as in a ``ShardedTable``, and can read all of them, whichever files hold them.
    No method is collective.

    Attributes:
        dtype: float32 or bfloat16.
    """

    def __init__(
        self, pieces: Sequence[StoredRows], rows: int, width: int, ranks: Ranks, dtype: torch.dtype = torch.float32
    ) -> None:
        """Take over open files whose ranges, in order, hold all rows."""
        self.shards, self.width, self.ranks, self.dtype = Shards(rows, ranks.size), width, ranks, dtype
        self._pieces = list(pieces)
        self._starts = np.array([piece.low for piece in pieces])
        self._row_bytes = width * dtype.itemsize

    def rows(self, low: int, high: int) -> Tensor:
        """Return rows ``low … high - 1``: [high - low, width]."""
        out = torch.empty(high - low, self.width, dtype=self.dtype)
        buffer = _bytes_of(out).ravel()
        for piece in self._pieces:
            first, last = max(low, piece.low), min(high, piece.high)
            if first < last:
                part = buffer[(first - low) * self._row_bytes : (last - low) * self._row_bytes]
                _read(piece.file, part, piece.offset + (first - piece.low) * self._row_bytes)
        return out.to(self.ranks.device)

    def take(self, ids: Tensor) -> Tensor:
        """Return the rows of any ids int64 [k], with repetitions: [k, width]."""
        unique, position = np.unique(ids.cpu().numpy(), return_inverse=True)
        out = torch.empty(len(unique), self.width, dtype=self.dtype)
        content = _bytes_of(out)
        ends = [*np.searchsorted(unique, self._starts[1:]).tolist(), len(unique)]
        first = 0
        for piece, last in zip(self._pieces, ends, strict=True):
            if first < last:
                content[first:last] = _mapped(piece, self._row_bytes)[unique[first:last] - piece.low]
            first = last
        return out[torch.from_numpy(position)].to(self.ranks.device)

    def gather(self, ids: Tensor) -> Tensor:
        """Return the rows of any ids int64 [k] as float32 [k, width]."""
        return self.take(ids).float()

    def __del__(self) -> None:
        for piece in getattr(self, "_pieces", ()):
            os.close(piece.file)


def _bytes_of(rows: Tensor) -> np.ndarray:
    """Return a view of the bytes of rows: uint8 [n, bytes of a row]."""
    view: np.ndarray = rows.view(torch.uint8).numpy()
    return view


def _read(file: int, out: np.ndarray, offset: int) -> None:
    """Fill ``out``, uint8, from a position of a file.

    Raises:
        OSError: the file ends before, or cannot be read.
    """
    done = 0
    while done < len(out):
        got = os.preadv(file, [out[done:].data], offset + done)
        if not got:
            raise OSError("the file of a checkpoint became shorter while it was read")
        done += got


def _mapped(piece: StoredRows, row_bytes: int) -> np.ndarray:
    """Map the rows of a file: uint8 [rows, row_bytes]; pages are read when they are used, and freed with the map."""
    with os.fdopen(os.dup(piece.file), "rb") as file:
        return np.memmap(file, np.uint8, "r", offset=piece.offset, shape=(piece.high - piece.low, row_bytes))
