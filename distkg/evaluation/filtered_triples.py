"""Triples to rank, or queries to answer, with the known answers of their queries in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


QueriesOf = Callable[[np.ndarray], np.ndarray]
"""Function from items [n, …], such as triples, to their queries int [q, 2]."""


def parts_with_known_answers(
    store: Store,
    items: np.ndarray,
    queries_of: QueriesOf,
    ranks: Ranks | None = None,
    own: tuple[int, int] | None = None,
) -> Iterator[tuple[np.ndarray, KnownAnswers]]:
    """Yield consecutive parts of items [n, …], each with all known answers, of any split, to the queries of its items.

    Items are halved until the known answers of a part are ``HELD_AT_ONCE`` at most, or it has one item; each attempt
    costs a pass over the facts of the store.

    Args:
        ranks: ranks that agree on the parts, collectively; default: this process alone.
        own: collect known answers only from the first entity to before the last.
    """
    parts = [items]
    while parts:
        part = parts.pop()
        known = _known_answers(store, queries_of(part), HELD_AT_ONCE if len(part) > 1 else None, own)
        if ranks is not None:
            refused = torch.tensor([float(known is None)])
            ranks.all_reduce(refused, "max")
            known = None if bool(refused) else known
        if known is None:
            parts += [part[len(part) // 2 :], part[: len(part) // 2]]
        else:
            yield part, known


def _known_answers(
    store: Store, queries: np.ndarray, most: int | None, own: tuple[int, int] | None
) -> KnownAnswers | None:
    """Return the known answers to queries [q, 2] among the entities ``own``; None if there are more than ``most``."""
    facts = store.iter_triples(list(store.manifest.triples))
    with suppress(TooManyKnownError):
        return KnownAnswers.for_queries(facts, store.num_relations, queries, own=own, most=most)
    return None


class FilteredTriples:
    """Triples to rank, once or again and again.

    They are ranked in parts if their known answers are too many to hold. Known answers of all triples, if they fit, are
    kept for the next time.

    Attributes:
        triples: int [n, 3].
    """

    def __init__(self, store: Store, triples: np.ndarray, ranks: Ranks | None = None, *, sharded: bool = False) -> None:
        """Rank ``triples`` [n, 3], filtered by the facts of all splits of ``store``.

        Args:
            ranks: ranks that rank them together; default: this process alone.
            sharded: each rank scores its own entities, and needs known answers among these alone.
        """
        self.triples = triples
        self._store, self._ranks = store, ranks or Ranks.single()
        self._own = Shards(store.num_entities, self._ranks.size).range(self._ranks.rank) if sharded else None
        self._known: KnownAnswers | None = None

    def rank(self, rank: Rank) -> Ranking:
        """Return the ranking of all triples; collective."""
        rankings = [rank(part, known) for part, known in self._parts()]
        return rankings[0] if len(rankings) == 1 else _joined(rankings)

    def hold(self) -> None:
        """Collect the known answers of all triples now, if they fit; collective."""
        next(self._parts(), None)

    def _parts(self) -> Iterator[tuple[np.ndarray, KnownAnswers]]:
        if self._known is not None:
            yield self.triples, self._known
            return

        def queries_of(triples: np.ndarray) -> np.ndarray:
            return both_queries(triples, self._store.num_relations)[0]

        for part, known in parts_with_known_answers(self._store, self.triples, queries_of, self._ranks, self._own):
            if len(part) == len(self.triples):
                self._known = known
            yield part, known


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
