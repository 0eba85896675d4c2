"""The graphs that a foundation model learns from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from distkg.config import ConfigError, RunConfig
from distkg.data.known import KnownAnswers
from distkg.data.store import Store
from distkg.foundation import KnowledgeGraph
from distkg.negatives import NegativeSource, TrainingGraph, make_source


def graphs_of(config: RunConfig) -> list[str]:
    """Addresses of the stores that a foundation model learns from.

    Raises:
        ConfigError: there is none.
    """
    found = config.data.graphs or ([config.data.store] if config.data.store else [])
    if not found:
        raise ConfigError(
            "data.graphs is empty: name stores made by `distkg prepare`, as in --set 'data.graphs=[stores/x, stores/y]'"
        )
    return found


@dataclass(frozen=True)
class LearnedGraph:
    """A store that a model learns from.

    Attributes:
        store: its training facts are reasoned from, and asked about while they are hidden.
        name: of the store's folder, for reports.
    """

    store: Store
    name: str
    source: NegativeSource

    @classmethod
    def open(cls, address: str, config: RunConfig) -> LearnedGraph:
        store, chosen = Store.open(address), config.negatives
        source = make_source(chosen.source, chosen.options, TrainingGraph.of_store(store))
        name = "/".join(Path(address.rstrip("/")).parts[-2:])
        return cls(store, name, source)

    @cached_property
    def facts(self) -> KnowledgeGraph:
        return KnowledgeGraph.of_store(self.store)

    @property
    def known(self) -> KnownAnswers:
        return self.source.graph.known
