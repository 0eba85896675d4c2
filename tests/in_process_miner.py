"""Compares relations in this process, with the faults that a test asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from distkg.negatives.kmas.relation_miner import Mine, Weights
from distkg.negatives.kmas.relation_similarity import RelationTable
from distkg.negatives.prefetch.pool_events import PoolEvent


@dataclass
class InProcessMiner:
    """Compares when asked; ``late`` says how often tables are taken in vain before they are there, None for always.

    ``spoil`` changes tables on their way.
    """

    mine: Mine
    late: int | None = 0
    spoil: Callable[[RelationTable], RelationTable] = lambda table: table
    restarts: int = 0
    hung: int = 0
    events: list[PoolEvent] = field(default_factory=list)
    asked: list[tuple[int, Weights]] = field(default_factory=list)
    under_way: dict[str, RelationTable] | None = None
    patience: int | None = 0

    def take_events(self) -> Sequence[PoolEvent]:
        taken, self.events = self.events, []
        return taken

    def ask(self, version: int, weights: Weights) -> bool:
        if self.under_way is not None:
            return False
        self.asked.append((version, weights))
        try:
            self.under_way = {graph: self.spoil(table) for graph, table in self.mine(version, weights).items()}
        except Exception as error:
            self.events.append(PoolEvent.of_error(error, f"comparing relations for step {version}"))
        self.patience = self.late
        return True

    def take(self, *, wait: bool) -> Mapping[str, RelationTable]:
        if self.under_way is None:
            return {}
        if not wait and self.patience != 0:
            self.patience = None if self.patience is None else self.patience - 1
            return {}
        taken, self.under_way = self.under_way, None
        return taken
