"""Training graph of negative sources: the training triples and the classes and degrees of their entities."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from distkg.data.store.classes import Classes
from distkg.data.store.graph_store import Store
from distkg.data.store.known_answers import KnownAnswers
from distkg.graph.directions import both_directions

Value = TypeVar("Value")


class TrainingGraph:
    """Training part of a graph; everything is read or computed at first use.

    Attributes:
        entities, relations: their numbers.
    """

    def __init__(
        self,
        entities: int,
        relations: int,
        triples: Callable[[], NDArray[np.int32]],
        classes: Callable[[], Classes | None] = lambda: None,
        degrees: Callable[[], NDArray[np.int64]] | None = None,
    ) -> None:
        self.entities, self.relations = entities, relations
        self._read_triples, self._read_classes, self._read_degrees = triples, classes, degrees

    @classmethod
    def of_store(cls, store: Store) -> TrainingGraph:
        # The store counts degrees while it streams triples; counting here would hold all of them in memory.
        return cls(
            store.num_entities, store.num_relations, partial(store.triples, "train"), store.classes, store.degrees
        )

    @classmethod
    def of_triples(
        cls, triples: np.ndarray, entities: int, relations: int, classes: Classes | None = None
    ) -> TrainingGraph:
        """Build a graph of integer triples [n, 3] in memory."""
        held = np.ascontiguousarray(triples, dtype=np.int32)
        return cls(entities, relations, partial(_same, held), partial(_same, classes))

    @cached_property
    def triples(self) -> NDArray[np.int32]:
        """Triples int32 [n, 3], columns head, relation, tail."""
        return self._read_triples()

    @cached_property
    def degrees(self) -> NDArray[np.int64]:
        """Occurrences of each entity as head or tail: int64 [N]."""
        if self._read_degrees is not None:
            return self._read_degrees()
        return np.bincount(self.triples[:, ::2].ravel(), minlength=self.entities)

    @cached_property
    def classes(self) -> Classes | None:
        """Classes of entities and classes that relations require; None if the store has none."""
        return self._read_classes()

    @cached_property
    def known(self) -> KnownAnswers:
        """Known training answers of every query."""
        return KnownAnswers.from_triples(self.triples, self.relations)

    def queries(self) -> NDArray[np.int64]:
        """Return both queries of every triple: int64 [2n, 3], columns anchor, relation in [0, 2R), answer."""
        return np.stack(both_directions(*self.triples.astype(np.int64).T, num_relations=self.relations), axis=1)


def _same(value: Value) -> Value:
    """Return the value; unlike a lambda, a partial of it can be pickled."""
    return value
