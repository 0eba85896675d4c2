"""Detection of duplicates within a split and of triples shared by splits, in bounded memory with hash buckets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distkg.compilation import njit
from distkg.data.readers.problems import Problems
from distkg.data.spool import NO_ROWS, Spool

BUCKET_ROWS = 1 << 22
RECORD = np.dtype([("triple", np.int32, 3), ("split", np.int32), ("row", np.int64)])


@dataclass
class Repeats:
    """Duplicate rows within splits and overlaps between splits.

    Attributes:
        dropped: split → sorted rows that repeat an earlier row of the same split.
        originals: split → earlier row that each dropped one repeats.
        overlaps: (split, later split) → pairs of rows [n, 2] that hold the same triple.
    """

    dropped: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    originals: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    overlaps: dict[tuple[str, str], NDArray[np.int64]] = field(default_factory=dict)

    def report(self, spools: dict[str, Spool], problems: Problems) -> None:
        """Count duplicates and overlaps as warnings, each with its first occurrence."""
        for split, rows in self.dropped.items():
            if len(rows):
                spool, original = spools[split], int(self.originals[split][0])
                where = f"{spool.where(int(rows[0]))} repeats {spool.where(original)}"
                problems.note(f"{split}_duplicates", where, len(rows))
        for (split, later), pairs in self.overlaps.items():
            if len(pairs):
                row, later_row = (int(row) for row in pairs[0])
                where = f"{spools[later].where(later_row)} is also {spools[split].where(row)}"
                problems.note(f"{split}_{later}_overlap", where, len(pairs))


def find_repeats(spools: dict[str, Spool], folder: Path, bucket_rows: int = BUCKET_ROWS) -> Repeats:
    """Compare all triples of all splits; memory is bounded by ``bucket_rows`` and the number of repeats."""
    splits = list(spools)
    dropped: list[list[NDArray[np.int64]]] = [[] for _ in splits]
    overlaps: dict[tuple[int, int], list[NDArray[np.int64]]] = {
        pair: [] for pair in combinations(range(len(splits)), 2)
    }
    for records in _buckets(spools, folder, bucket_rows):
        _compare(records, dropped, overlaps)
    repeats = Repeats()
    for code, split in enumerate(splits):
        pairs = _sorted_pairs(dropped[code])
        repeats.dropped[split], repeats.originals[split] = pairs[:, 0].copy(), pairs[:, 1].copy()
    for (code, later), parts in overlaps.items():
        pairs = _sorted_pairs(parts)
        repeats.overlaps[splits[code], splits[later]] = pairs[np.argsort(pairs[:, 1], kind="stable")]
    return repeats


def _sorted_pairs(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    pairs = np.concatenate([*parts, NO_ROWS.reshape(0, 2)])
    return pairs[np.argsort(pairs[:, 0], kind="stable")]


def _buckets(spools: dict[str, Spool], folder: Path, bucket_rows: int) -> Iterator[NDArray[np.void]]:
    """Yield buckets of records: equal triples share a bucket, and a bucket is ordered by split and row."""
    count = -(-sum(len(spool) for spool in spools.values()) // bucket_rows) or 1
    paths = [folder / f"bucket.{bucket}" for bucket in range(count)]
    files = [path.open("wb") for path in paths]
    for code, spool in enumerate(spools.values()):
        for rows, triples in spool.chunks():
            records = np.empty(len(rows), dtype=RECORD)
            records["triple"], records["split"], records["row"] = triples, code, rows
            choice = _mix(triples) % np.uint64(count)
            for bucket, file in enumerate(files):
                file.write(records[choice == bucket].tobytes())
    for path, file in zip(paths, files, strict=True):
        file.close()
        yield np.fromfile(path, dtype=RECORD)
        path.unlink()


def _mix(triples: NDArray[np.int32]) -> NDArray[np.uint64]:
    columns = triples.astype(np.uint64)
    odd = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
    mixed = (columns * odd).sum(axis=1, dtype=np.uint64)
    return (mixed ^ (mixed >> np.uint64(31))) * odd[0] >> np.uint64(33)


def _compare(
    records: NDArray[np.void],
    dropped: list[list[NDArray[np.int64]]],
    overlaps: dict[tuple[int, int], list[NDArray[np.int64]]],
) -> None:
    first = first_occurrences(np.ascontiguousarray(records["triple"]))
    repeated = np.flatnonzero(first != np.arange(len(first)))
    if not len(repeated):
        return
    members = np.unique(np.concatenate([repeated, first[repeated]]))
    split, row = records["split"][members], records["row"][members]
    # One representative per (triple, split): members are in row order, so the first one is kept.
    group = first[members] * len(dropped) + split
    _, firsts, inverse = np.unique(group, return_index=True, return_inverse=True)
    original = row[firsts][inverse]
    for code, parts in enumerate(dropped):
        in_split = (split == code) & (original != row)
        parts.append(np.stack([row[in_split], original[in_split]], axis=1))
    for (code, later), parts in overlaps.items():
        in_earlier, in_later = firsts[split[firsts] == code], firsts[split[firsts] == later]
        _, left, right = np.intersect1d(first[members[in_earlier]], first[members[in_later]], return_indices=True)
        parts.append(np.stack([row[in_earlier[left]], row[in_later[right]]], axis=1))


def first_occurrences(triples: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the index of the first equal row, for each row of int32 [n, 3]: int64 [n]."""
    table = np.full(1 << max(4, (2 * len(triples)).bit_length()), -1, dtype=np.int32)
    first = np.empty(len(triples), dtype=np.int64)
    _first(triples, _mix(triples), table, first)
    return first


@njit(cache=True)
def _first(triples: np.ndarray, codes: np.ndarray, table: np.ndarray, first: np.ndarray) -> None:
    mask = np.uint64(table.size - 1)
    for i in range(first.size):
        slot = codes[i] & mask
        while True:
            j = table[slot]
            if j < 0:
                table[slot] = i
                j = i
                break
            if triples[i, 0] == triples[j, 0] and triples[i, 1] == triples[j, 1] and triples[i, 2] == triples[j, 2]:
                break
            slot = (slot + np.uint64(1)) & mask
        first[i] = j
