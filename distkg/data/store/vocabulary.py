"""Mapping of labels to ids in flat arrays: no Python object per label, so tens of millions of labels fit.

Open addressing over 64-bit FNV-1a hashes (Fowler, Noll, Vo), with the labels' bytes compared on every match.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distkg.compilation import njit
from distkg.data.errors import IngestError

MOST_LABELS = 2**31 - 1


class Vocabulary:
    """Growing vocabulary: assigns labels the ids 0, 1, 2 … in order of first occurrence."""

    def __init__(self) -> None:
        self._count = 0
        self._table = np.full(1 << 10, -1, dtype=np.int32)
        self._hashes = np.empty(1 << 9, dtype=np.uint64)
        self._ends = np.zeros((1 << 9) + 1, dtype=np.int64)
        self._text = np.empty(1 << 14, dtype=np.uint8)

    def __len__(self) -> int:
        return self._count

    def encode(self, labels: pa.Array) -> NDArray[np.int32]:
        """Return the ids of labels (utf8 [n], no nulls): int32 [n]; new labels get the next ids.

        Raises:
            IngestError: more than 2³¹-1 labels.
        """
        offsets = np.frombuffer(labels.buffers()[1], dtype=np.int32)
        offsets = offsets[labels.offset : labels.offset + len(labels) + 1]
        content = labels.buffers()[2]
        data = np.frombuffer(content, dtype=np.uint8) if content else np.empty(0, dtype=np.uint8)
        self._reserve(len(labels), int(offsets[-1] - offsets[0]))
        ids = np.empty(len(labels), dtype=np.int32)
        self._count = _encode(data, offsets, ids, self._table, self._hashes, self._ends, self._text, self._count)
        return ids

    def labels(self) -> pa.Array:
        """Return all labels in id order: large_utf8 [len]."""
        ends = self._ends[: self._count + 1]
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(self._text[: ends[-1]])]
        return pa.Array.from_buffers(pa.large_utf8(), self._count, buffers)

    def _reserve(self, labels: int, text: int) -> None:
        """Allocate room for so many more labels and bytes, as if all were new."""
        count = self._count + labels
        if count > MOST_LABELS:
            raise IngestError(f"more than {MOST_LABELS:,} labels; a store's ids are 32-bit")
        self._hashes = _resized(self._hashes, count)
        self._ends = _resized(self._ends, count + 1)
        self._text = _resized(self._text, int(self._ends[self._count]) + text)
        if self._table.size < 2 * count:
            self._table = np.full(1 << (2 * count - 1).bit_length(), -1, dtype=np.int32)
            _fill_table(self._table, self._hashes, self._count)


def _resized(array: np.ndarray, size: int) -> np.ndarray:
    if array.size >= size:
        return array
    larger = np.empty(max(size, array.size + array.size // 2), dtype=array.dtype)
    larger[: array.size] = array
    return larger


@njit(cache=True)
def _fill_table(table: np.ndarray, hashes: np.ndarray, count: int) -> None:
    mask = np.uint64(table.size - 1)
    for label in range(count):
        slot = hashes[label] & mask
        while table[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        table[slot] = label


@njit(cache=True)
def _encode(
    data: np.ndarray,
    offsets: np.ndarray,
    ids: np.ndarray,
    table: np.ndarray,
    hashes: np.ndarray,
    ends: np.ndarray,
    text: np.ndarray,
    count: int,
) -> int:
    mask = np.uint64(table.size - 1)
    for i in range(ids.size):
        low, high = offsets[i], offsets[i + 1]
        code = _hash(data, low, high)
        slot = code & mask
        while True:
            label = table[slot]
            if label < 0:
                table[slot] = count
                hashes[count] = code
                start = ends[count]
                for byte in range(high - low):
                    text[start + byte] = data[low + byte]
                ends[count + 1] = start + (high - low)
                label = count
                count += 1
                break
            if hashes[label] == code and _same(text, ends[label], ends[label + 1], data, low, high):
                break
            slot = (slot + np.uint64(1)) & mask
        ids[i] = label
    return count


@njit(cache=True, inline="always")
def _hash(data: np.ndarray, low: int, high: int) -> np.uint64:
    code = np.uint64(14695981039346656037)
    for byte in range(low, high):
        code = (code ^ np.uint64(data[byte])) * np.uint64(1099511628211)
    return code ^ (code >> np.uint64(32))


@njit(cache=True, inline="always")
def _same(text: np.ndarray, start: int, end: int, data: np.ndarray, low: int, high: int) -> bool:
    if end - start != high - low:
        return False
    for byte in range(high - low):  # noqa: SIM110 - compiled loop
        if text[start + byte] != data[low + byte]:
            return False
    return True
