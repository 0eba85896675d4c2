"""Cardinality categories of relations: 1-1, 1-n, n-1 and n-n."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distkg.compilation import njit
from distkg.data.store.query_index import hash_key

THRESHOLD = 1.5
PART_BYTES = 256 << 20  # of the queries that are counted at once


@dataclass(frozen=True)
class QueryCounts:
    """Number of facts and of distinct queries of each relation.

    Attributes:
        facts: int64 [R].
        queries: int64 [2R], distinct queries (anchor, relation); the heads of r, then the tails of r as those of r + R.
    """

    facts: NDArray[np.int64]
    queries: NDArray[np.int64]

    def answers_per_query(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean number of tails per head and of heads per tail of each relation: float64 [R] each, 0 for a
        relation without facts."""
        heads, tails = np.split(self.queries, 2)
        return self.facts / np.maximum(heads, 1), self.facts / np.maximum(tails, 1)

    def categories(self) -> list[str]:
        """Return the category of each relation.

        Bordes et al. 2013 (Translating Embeddings for Modeling Multi-relational Data, section 4.3): a side counts as
        n where an average of 1.5 or more entities of that side share the other entity. "1-n" thus means: a head has
        many tails, a tail has one head. A relation without facts is "1-1".
        """
        tails_per_head, heads_per_tail = self.answers_per_query()
        head_side = np.where(heads_per_tail < THRESHOLD, "1", "n")
        tail_side = np.where(tails_per_head < THRESHOLD, "1", "n")
        return [f"{head}-{tail}" for head, tail in zip(head_side, tail_side, strict=True)]


def count_queries(
    stream: Callable[[], Iterable[np.ndarray]],
    facts: int,
    num_relations: int,
    *,
    rank: int = 0,
    ranks: int = 1,
    part_bytes: int = PART_BYTES,
) -> QueryCounts:
    """Count the facts and the distinct queries of each relation in a stream of distinct triples.

    Queries are divided into parts by a hash, and the stream is read once for each part, whose distinct queries are
    held. Each of ``ranks`` counts some of the parts; the counts of all add up to those of the stream.

    Args:
        stream: function that starts the stream again: batches of triples [b, 3].
        facts: number of triples in the stream.
        part_bytes: memory for the queries of a part, which may be exceeded by a third.
    """
    parts = ranks * -(-2 * facts * 8 // (part_bytes * ranks))
    of_relation, queries = np.zeros(num_relations, np.int64), np.zeros(2 * num_relations, np.int64)
    for part in range(rank, max(parts, 1), ranks):
        seen = _DistinctKeys(part_bytes // 8 if parts > 1 else 2 * facts)
        for triples in stream():
            seen.add(triples, num_relations, part, max(parts, 1))
            if part == 0:
                of_relation += np.bincount(triples[:, 1], minlength=num_relations)
        seen.count(queries)
    return QueryCounts(of_relation, queries)


class _DistinctKeys:
    """Set of query keys in an array, which is sorted and rid of duplicates whenever it is full."""

    def __init__(self, capacity: int) -> None:
        self._keys, self._filled = np.empty(max(capacity, 1), np.int64), 0

    def add(self, triples: np.ndarray, num_relations: int, part: int, parts: int) -> None:
        """Add the keys of both queries of triples [n, 3] that belong to a part."""
        start, triples = 0, np.ascontiguousarray(triples, np.int32)  # compiled once
        while start < len(triples):
            if self._filled + 2 > len(self._keys):
                self._make_room()
            start, self._filled = _take(triples, num_relations, part, parts, start, self._keys, self._filled)

    def count(self, queries: NDArray[np.int64]) -> None:
        """Add the number of distinct keys of each relation to ``queries`` [2R]."""
        self._drop_duplicates()
        _count_relations(self._keys[: self._filled], queries)

    def _make_room(self) -> None:
        self._drop_duplicates()
        if 4 * self._filled > 3 * len(self._keys) - 8:
            self._keys = np.resize(self._keys, len(self._keys) * 4 // 3 + 2)

    def _drop_duplicates(self) -> None:
        """Sort the keys in place and keep the first of equal ones."""
        keys = self._keys[: self._filled]
        keys.sort()
        self._filled = _move_distinct(keys)


@njit(cache=True, nogil=True)
def _take(
    triples: np.ndarray, relations: int, part: int, parts: int, start: int, keys: np.ndarray, filled: int
) -> tuple[Any, Any]:
    """Append the keys of a part from triple ``start`` on while there is room; return the next triple and the number of
    keys."""
    for i in range(start, len(triples)):
        if filled + 2 > len(keys):
            return i, filled
        for side in range(2):
            key = np.int64(triples[i, 2 * side]) * (2 * relations) + triples[i, 1] + side * relations
            if parts == 1 or hash_key(np.uint64(key)) % np.uint64(parts) == np.uint64(part):
                keys[filled] = key
                filled += 1
    return len(triples), filled


@njit(cache=True, nogil=True)
def _move_distinct(keys: np.ndarray) -> int:
    """Move the first of equal sorted keys to the front and return their number."""
    kept = 0
    for i in range(len(keys)):
        if i == 0 or keys[i] != keys[kept - 1]:
            keys[kept] = keys[i]
            kept += 1
    return kept


@njit(cache=True, nogil=True)
def _count_relations(keys: np.ndarray, queries: np.ndarray) -> None:
    """Add the number of keys of each relation in [0, 2R) to ``queries`` [2R]."""
    for i in range(len(keys)):
        queries[keys[i] % len(queries)] += 1
