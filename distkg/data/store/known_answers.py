"""Known answers by query, for filtered ranking: (h, r) → t and (t, r + R) → h."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distkg.data.store.query_index import QueryIndex
from distkg.graph.directions import both_directions, query_keys

Known = Literal["exclude", "mark", "keep"]
"""Treatment of known facts among predictions: left out, marked, or kept without a look."""

SORTED_QUERY_BYTES = 60  # per query while queries are sorted and grouped: rows, keys, order, offsets and answers


HELD_AT_ONCE = 1 << 24
"""Known answers that a rank holds at once in an evaluation, unless the two queries of a single triple have more."""

KNOWN_BYTES = 48  # per known answer while they are sorted


class TooManyKnownError(ValueError):
    """Error of queries that more facts answer than may be held."""


@dataclass(frozen=True)
class KnownAnswers:
    """Known answers in compressed sparse rows, one row per query that has an answer.

    Attributes:
        num_relations: R; relations of queries are in [0, 2R).
        keys: int64 [K] sorted, unique: anchor * 2R + relation.
        offsets: int64 [K + 1]; the answers of key k are ``answers[offsets[k]:offsets[k + 1]]``.
        answers: int32, sorted and unique within a key.
    """

    num_relations: int
    keys: NDArray[np.int64]
    offsets: NDArray[np.int64]
    answers: NDArray[np.int32]

    @classmethod
    def from_triples(cls, triples: np.ndarray, num_relations: int) -> KnownAnswers:
        """Collect the answers of all queries in integer triples [n, 3]."""
        keys, answers = _both_ways(triples, num_relations)
        return cls._from_pairs(keys, answers, num_relations)

    @classmethod
    def for_queries(
        cls,
        batches: Iterable[np.ndarray],
        num_relations: int,
        queries: np.ndarray,
        *,
        own: tuple[int, int] | None = None,
        most: int | None = None,
    ) -> KnownAnswers:
        """Collect the answers of given queries [q, 2] (anchor, relation) from batches of triples [b, 3].

        Memory is bounded by the answers of those queries and one batch.

        Args:
            own: collect only entities from the first id to before the last.
            most: number of facts to collect at most.

        Raises:
            TooManyKnownError: there are more than ``most``.
        """
        index = QueryIndex(queries, num_relations)
        kept_keys = [np.empty(0, dtype=np.int64)]
        kept_answers = [np.empty(0, dtype=np.int32)]
        held = 0
        for batch in batches:
            place, answers = index.matches(batch)
            if own is not None:
                inside = (answers >= own[0]) & (answers < own[1])
                place, answers = place[inside], answers[inside]
            kept_keys.append(index.keys[place])
            kept_answers.append(answers)
            held += len(answers)
            if most is not None and held > most:
                raise TooManyKnownError(f"more than {most} facts answer {len(queries)} queries")
        return cls._from_pairs(np.concatenate(kept_keys), np.concatenate(kept_answers), num_relations)

    def rows(self, anchors: np.ndarray, relations: np.ndarray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Start and end of the answers of queries [q] within ``answers``: int64 [q] each; equal if none are known."""
        places, known = _find(self.keys, query_keys(anchors, relations, self.num_relations))
        starts = self.offsets[places]
        return starts, np.where(known, self.offsets[np.minimum(places + 1, len(self.keys))], starts)

    @classmethod
    def _from_pairs(cls, keys: NDArray[np.int64], answers: NDArray[np.int32], num_relations: int) -> KnownAnswers:
        keys, answers = _sorted_unique(keys, answers)
        unique_keys, starts = np.unique(keys, return_index=True)
        return cls(num_relations, unique_keys, np.append(starts, len(keys)).astype(np.int64), answers)


def _both_ways(triples: np.ndarray, num_relations: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return keys and answers of the two queries (tail and head) of each triple: [2n] each."""
    anchors, relations, answers = both_directions(*triples.T, num_relations=num_relations)
    return query_keys(anchors, relations, num_relations), answers.astype(np.int32, copy=False)


def _find(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Locate keys in sorted keys: positions (of insertion, if absent) and a bool mask of those present."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return places, keys[places] == wanted


def _sorted_unique(keys: NDArray[np.int64], answers: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Sort (key, answer) pairs and drop duplicates."""
    if not len(keys):
        return keys, answers
    width = int(answers.max()) + 1
    if int(keys.max()) < (2**63 - 1) // width - 1:
        pairs = np.unique(keys * width + answers)  # one sort of integers, several times faster than lexsort
        return pairs // width, (pairs % width).astype(np.int32)
    order = np.lexsort((answers, keys))
    keys, answers = keys[order], answers[order]
    fresh = np.append(True, (np.diff(keys) != 0) | (np.diff(answers) != 0))
    return keys[fresh], answers[fresh]
