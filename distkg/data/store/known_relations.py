"""Known relations by pair of entities, for filtering: (h, ?, t) → r."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distkg.graph.csr import expanded_ranges


@dataclass(frozen=True)
class KnownRelations:
    """Facts sorted by their pair.

    Attributes:
        entities: N, which keys are made with.
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
        """Of triples [n, 3] that stream by; of the pairs ``asked`` [q, 2] alone, where they are given."""
        wanted = None if asked is None else np.unique(_keys(asked[:, 0], asked[:, 1], entities))
        keys, relations = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        for triples in batches:
            found = _keys(triples[:, 0], triples[:, 2], entities)
            mine = slice(None) if wanted is None else np.isin(found, wanted)
            keys.append(found[mine])
            relations.append(triples[mine, 1].astype(np.int32))
        together, of_each = np.concatenate(keys), np.concatenate(relations)
        order = np.argsort(together, kind="stable")
        return cls(entities, num_relations, together[order], of_each[order])

    def mask(self, pairs: np.ndarray) -> NDArray[np.bool_]:
        """Which relations are known between pairs int [b, 2], head and tail: bool [b, R]."""
        asked = _keys(pairs[:, 0], pairs[:, 1], self.entities)
        first, last = (np.searchsorted(self.keys, asked, side=side) for side in ("left", "right"))
        row, place = expanded_ranges(first, last)
        found = np.zeros((len(asked), self.num_relations), np.bool_)
        found[row, self.relations[place]] = True
        return found


def _keys(heads: np.ndarray, tails: np.ndarray, entities: int) -> NDArray[np.int64]:
    return heads.astype(np.int64) * entities + tails
