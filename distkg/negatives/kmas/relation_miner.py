"""Tables of relations that are alike, made elsewhere: asked for now and then, and used while they are young.

A step never waits for a table. Where there is none, or one too old or broken, relations are compared in the step, and
that is counted. Nothing here knows who compares: ``distkg.cluster`` has actors do it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from distkg.config import PoolConfig
from distkg.negatives.kmas.relation_similarity import Alike, AlikeOptions, RelationTable, table_of
from distkg.negatives.prefetch.pool_events import PoolEvent, PoolEventLog
from distkg.negatives.prefetch.prefetch_stats import Deliveries
from distkg.negatives.training_graph import TrainingGraph

Weights = Mapping[str, NDArray[np.float32]]
"""What relations are compared by: the parameters that their vectors are made of, by name."""

Mine = Callable[[int, Weights], Mapping[str, RelationTable]]
"""Version and weights → tables by the name of their graph."""

VECTORS, ONLY_GRAPH = "relations", ""


class Miner(Protocol):
    """Compares relations for this rank, elsewhere."""

    @property
    def restarts(self) -> int:
        """How often one who compares was lost and replaced."""
        ...

    @property
    def hung(self) -> int:
        """How often this rank had one who compares killed because it did not answer."""
        ...

    def take_events(self) -> Sequence[PoolEvent]:
        """What happened since the last call: comparisons that raised, lost and hung actors."""
        ...

    def ask(self, version: int, weights: Weights) -> bool:
        """Hand over weights without waiting; False, and nothing is done, while earlier ones are under way."""
        ...

    def take(self, *, wait: bool) -> Mapping[str, RelationTable]:
        """Tables that have come since the last call, by the name of their graph; with ``wait`` all under way."""
        ...


MinerOf = Callable[[str], Miner]
"""Key of a hosted source → who compares relations for it."""


class SimilarityCache:
    """The latest tables of a run's graphs, as this rank has them.

    Attributes:
        deliveries: what became of the draws that asked for one.
    """

    def __init__(self, miner: Miner, how: PoolConfig, refresh_steps: int) -> None:
        self._miner, self._how, self._refresh_steps = miner, how, refresh_steps
        self._asked: int | None = None
        self._tables: dict[str, tuple[RelationTable, Alike | None]] = {}
        self._failing = False
        self.deliveries = Deliveries()
        self.log = PoolEventLog(how.on_error)

    @property
    def restarts(self) -> int:
        """How often one who compares was lost and replaced, as this rank has seen it."""
        return self._miner.restarts

    @property
    def hung(self) -> int:
        """How often this rank had one who compares killed because it did not answer."""
        return self._miner.hung

    def refresh(self, step: int, weights: Callable[[], Weights]) -> None:
        """Take what has come, and where it is time, have relations compared by the weights of this step.

        Raises:
            NegativePoolError: a comparison raised, and ``negatives.pool.on_error`` is ``fail``.
        """
        due = self._asked is None or not 0 <= step - self._asked < self._refresh_steps
        if due and self._miner.ask(step, weights()):
            self._asked = step
        arrived = self._miner.take(wait=self._how.sync)
        events = self._miner.take_events()
        self.log.heed(events)
        self._failing = not arrived and (self._failing or any(event.kind == "failed" for event in events))
        for graph, table in arrived.items():
            self._tables[graph] = table, None

    def latest(self, graph: str, relations: int, step: int, queries: int) -> Alike | None:
        """For each of a graph's relations those like it; None where no table can be used. Either way it is counted."""
        came = self.deliveries
        if graph not in self._tables:
            came.add("failed" if self._failing else "late", queries)
            return None
        table, alike = self._tables[graph]
        if alike is None:
            if not table.sound(relations):
                came.broken += queries
                self.log.warn(PoolEvent("broken", f"the table of similar relations of step {table.version} is broken"))
                return None
            alike = table.alike()
            self._tables[graph] = table, alike
        if not 0 <= step - table.version <= self._how.max_age:
            came.add("failed" if self._failing else "old", queries)
            return None
        came.delivered += queries
        came.ages.append(step - table.version)
        return alike

    def take_deliveries(self) -> Deliveries:
        """What became of the draws since the last call."""
        taken, self.deliveries = self.deliveries, Deliveries()
        return taken


class VectorMiner:
    """Compares the relations of one graph by the vectors that a model has of them; a ``Mine``."""

    def __init__(self, graph: TrainingGraph, options: AlikeOptions) -> None:
        self._usable, self._options = usable_relations(graph), options

    def __call__(self, version: int, weights: Weights) -> dict[str, RelationTable]:
        vectors = torch.from_numpy(np.array(weights[VECTORS]))
        return {ONLY_GRAPH: table_of(vectors, self._usable, self._options, version)}


def usable_relations(graph: TrainingGraph) -> torch.Tensor:
    """Relations that have facts, and so answers of either side: bool [R]."""
    return torch.from_numpy(np.bincount(graph.triples[:, 1], minlength=graph.relations) > 0)
