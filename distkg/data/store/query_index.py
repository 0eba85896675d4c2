"""Index of queries that finds the facts about them in a stream of triples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distkg.compilation import njit
from distkg.graph.directions import query_keys
from distkg.hashing import splitmix64

hash_key = njit(cache=True, nogil=True)(splitmix64)

BITS_PER_KEY = 16  # of the filter: one query in sixteen that is not indexed is looked up in vain


class QueryIndex:
    """Distinct queries (anchor, relation in [0, 2R)), held as sorted keys behind a filter of bits.

    Most queries of a stream are not indexed. The filter, which fits into the processor's cache, rejects these without
    a search among the keys.

    Attributes:
        keys: int64 [K] sorted: anchor · 2R + relation.
        num_relations: R.
    """

    def __init__(self, queries: np.ndarray, num_relations: int) -> None:
        """Index queries [q, 2], which may repeat."""
        self.num_relations = num_relations
        self.keys: NDArray[np.int64] = np.unique(query_keys(queries[:, 0], queries[:, 1], num_relations))
        words = 1 << max(4, (len(self.keys) * BITS_PER_KEY // 64).bit_length())
        self._filter = np.zeros(words, np.uint64)
        _set_bits(self._filter, self.keys)

    def places(self, queries: np.ndarray) -> NDArray[np.int64]:
        """Return the index among ``keys`` of indexed queries [q, 2]: int64 [q]."""
        return np.searchsorted(self.keys, query_keys(queries[:, 0], queries[:, 1], self.num_relations))

    def matches(self, triples: np.ndarray) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Find the indexed queries among both queries of each triple [n, 3].

        Returns:
            index among ``keys``, int64 [m], and the answer, int32 [m], of each query found, in the order of triples.
        """
        place, answer = np.empty(2 * len(triples), np.int64), np.empty(2 * len(triples), np.int32)
        triples = np.ascontiguousarray(triples, np.int32)  # compiled once
        found = _matches(triples, self.num_relations, self.keys, self._filter, place, answer)
        return place[:found].copy(), answer[:found].copy()


@njit(cache=True, inline="always")
def _bit_of(key: Any, words: Any) -> Any:
    """Return the word of the filter and the mask of the bit for a key."""
    code = hash_key(np.uint64(key))
    return np.int64((code >> np.uint64(6)) & np.uint64(words - 1)), np.uint64(1) << (code & np.uint64(63))


@njit(cache=True)
def _set_bits(bits: np.ndarray, keys: np.ndarray) -> None:
    for i in range(len(keys)):
        word, bit = _bit_of(keys[i], len(bits))
        bits[word] |= bit


@njit(cache=True, nogil=True)
def _matches(
    triples: np.ndarray, relations: int, keys: np.ndarray, bits: np.ndarray, place: np.ndarray, answer: np.ndarray
) -> int:
    found = 0
    for i in range(len(triples)):
        for side in range(2):
            anchor, other = triples[i, 2 * side], triples[i, 2 - 2 * side]
            key = np.int64(anchor) * (2 * relations) + triples[i, 1] + side * relations
            word, bit = _bit_of(key, len(bits))
            if bits[word] & bit:
                at = np.searchsorted(keys, key)
                if at < len(keys) and keys[at] == key:
                    place[found], answer[found] = at, other
                    found += 1
    return found
