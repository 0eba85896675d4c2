"""Triples to rank together with the known answers of their queries, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch

from distkg.data.store.graph_store import Store
from distkg.data.store.known_answers import HELD_AT_ONCE, KnownAnswers, TooManyKnownError
from distkg.evaluation.ranking import Ranking, both_queries
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards

Rank = Callable[[np.ndarray, KnownAnswers], Ranking]
"""Function that ranks the answers of triples int [n, 3], filtered by known answers."""


class FilteredTriples:
    """Triples to rank, once or again and again.

    If the known answers of all are too many to hold, the triples are halved until those of a part are not; each part
    costs a pass over the facts of the store. Known answers of all triples, if they fit, are kept for the next time.
    """

    def __init__(self, store: Store, triples: np.ndarray, ranks: Ranks | None = None, *, sharded: bool = False) -> None:
        """Rank ``triples`` [n, 3], filtered by the facts of all splits of ``store``.

        Args:
            ranks: ranks that rank them together; default: this process alone.
            sharded: each rank scores its own entities, and needs known answers among these alone.
        """
        self._store, self._triples, self._ranks = store, triples, ranks or Ranks.single()
        self._own = Shards(store.num_entities, self._ranks.size).range(self._ranks.rank) if sharded else None
        self._known: KnownAnswers | None = None

    def rank(self, rank: Rank) -> Ranking:
        """Return the ranking of all triples; collective."""
        if self._known is not None:
            return rank(self._triples, self._known)
        parts, rankings = [self._triples], list[Ranking]()
        while parts:
            part = parts.pop()
            known = self._known_answers(part)
            if known is None:
                parts += [part[len(part) // 2 :], part[: len(part) // 2]]
                continue
            if len(part) == len(self._triples):
                self._known = known
            rankings.append(rank(part, known))
        return rankings[0] if len(rankings) == 1 else _joined(rankings)

    def _known_answers(self, triples: np.ndarray) -> KnownAnswers | None:
        """Return all known answers to the queries of triples; None if a rank would hold too many; collective."""
        store = self._store
        queries, _ = both_queries(triples, store.num_relations)
        most = HELD_AT_ONCE if len(triples) > 1 else None
        known = None
        with suppress(TooManyKnownError):
            known = KnownAnswers.for_queries(
                store.iter_triples(list(store.manifest.triples)),
                store.num_relations,
                np.unique(queries, axis=0),
                own=self._own,
                most=most,
            )
        refused = torch.tensor([float(known is None)], device=self._ranks.device)
        self._ranks.all_reduce(refused, "max")
        return None if bool(refused) else known


def _joined(rankings: list[Ranking]) -> Ranking:
    """Join the rankings of parts: the queries for tails of all parts first, then those for heads."""
    halves = [np.split(np.arange(len(each.answers)), 2) for each in rankings]
    tails, heads = ([half[side] for half in halves] for side in (0, 1))

    def joined(name: str) -> np.ndarray:
        arrays = [getattr(each, name) for each in rankings]
        return np.concatenate(
            [array[chosen] for side in (tails, heads) for array, chosen in zip(arrays, side, strict=True)]
        )

    return Ranking(joined("queries"), joined("answers"), joined("greater"), joined("equal"))
