"""Known relations of entity pairs, for filtered relation prediction: (h, ?, t) → r."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distkg.graph.csr import expanded_ranges


@dataclass(frozen=True)
class KnownRelations:
    """Relations of facts, sorted by (head, tail) pair.

    Attributes:
        entities: N, the factor in the keys.
        num_relations: R.
        keys: int64 [n] sorted: head * N + tail of each fact.
        relations: int32 [n], the facts' relations.
    """

    entities: int
    num_relations: int
    keys: NDArray[np.int64]
    relations: NDArray[np.int32]

    @classmethod
    def of(
        cls,
        batches: Iterable[np.ndarray],
        entities: int,
        num_relations: int,
        asked: np.ndarray | None = None,
    ) -> KnownRelations:
        """Collect the relations from batches of triples [n, 3]; only for the pairs ``asked`` [q, 2], if given."""
        requested_keys = None if asked is None else np.unique(_keys(asked[:, 0], asked[:, 1], entities))
        keys, relations = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        for triples in batches:
            batch_keys = _keys(triples[:, 0], triples[:, 2], entities)
            selected = slice(None) if requested_keys is None else np.isin(batch_keys, requested_keys)
            keys.append(batch_keys[selected])
            relations.append(triples[selected, 1].astype(np.int32))
        all_keys, all_relations = np.concatenate(keys), np.concatenate(relations)
        order = np.argsort(all_keys, kind="stable")
        return cls(entities, num_relations, all_keys[order], all_relations[order])

    def mask(self, pairs: np.ndarray) -> NDArray[np.bool_]:
        """Mask of the known relations of pairs int [b, 2] (head, tail): bool [b, R], True if known."""
        pair_keys = _keys(pairs[:, 0], pairs[:, 1], self.entities)
        first, last = (np.searchsorted(self.keys, pair_keys, side=side) for side in ("left", "right"))
        row, place = expanded_ranges(first, last)
        known = np.zeros((len(pair_keys), self.num_relations), np.bool_)
        known[row, self.relations[place]] = True
        return known


def _keys(heads: np.ndarray, tails: np.ndarray, entities: int) -> NDArray[np.int64]:
    return heads.astype(np.int64) * entities + tails
