"""Graphs from which a foundation model is trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from distkg.config import ConfigError, RunConfig
from distkg.data.store.graph_store import Store
from distkg.data.store.known_answers import KnownAnswers
from distkg.data.store.known_relations import KnownRelations
from distkg.evaluation.filtered_triples import FilteredTriples
from distkg.evaluation.metrics import subsample
from distkg.foundation.graphs.sampling import SubgraphSampler
from distkg.foundation.models import FoundationModel, KnowledgeGraph
from distkg.negatives import NegativeSource, TrainingGraph, make_source


def graphs_of(config: RunConfig) -> list[str]:
    """Return the addresses of the stores from which a foundation model is trained.

    Raises:
        ConfigError: there is none.
    """
    addresses = config.data.graphs or ([config.data.store] if config.data.store else [])
    if not addresses:
        raise ConfigError(
            "data.graphs is empty: name stores made by `distkg prepare`, as in --set 'data.graphs=[stores/x, stores/y]'"
        )
    return addresses


class StepGraph(Protocol):
    """Protocol of a graph from which a training step draws its queries.

    Attributes:
        source: negative source.
        facts: facts to reason from.
        questions: facts to ask about, int64 [n, 3]; those of them that are among ``facts`` are hidden while asked.
        surroundings: sampler of the facts around entities; None if the graph is read whole.
        known: answers that are no negatives.
        known_relations: relations that are no negatives, by pairs of entities.
    """

    @property
    def source(self) -> NegativeSource: ...

    @property
    def facts(self) -> KnowledgeGraph: ...

    @property
    def questions(self) -> Tensor: ...

    @property
    def surroundings(self) -> SubgraphSampler | None: ...

    @property
    def known(self) -> KnownAnswers: ...

    @property
    def known_relations(self) -> KnownRelations: ...


@dataclass(frozen=True, eq=False)
class LearnedGraph:
    """``StepGraph`` of a store: a store with its negative source; derived data is built once, at first use.

    Attributes:
        store: its training facts are the graph, and the queries while they are hidden.
        config: configuration of the run.
        source: negative source.
    """

    store: Store
    config: RunConfig
    source: NegativeSource

    @classmethod
    def open(cls, address: str, config: RunConfig) -> LearnedGraph:
        """Open a store and its negative source.

        Raises:
            StoreError: the store cannot be opened.
            UnknownNameError, ConfigError: there is no such negative source, or its options are wrong.
            SourceError: the store lacks what the negative source needs.
        """
        store, chosen = Store.open(address), config.negatives
        return cls(store, config, make_source(chosen.source, chosen.options, TrainingGraph.of_store(store)))

    @property
    def name(self) -> str:
        """Name of the store's folder and its parent, for reports."""
        return "/".join(Path(self.store.shown.rstrip("/")).parts[-2:])

    @cached_property
    def facts(self) -> KnowledgeGraph:
        return KnowledgeGraph.of_store(self.store)

    @property
    def questions(self) -> Tensor:
        return self.facts.triples

    @cached_property
    def surroundings(self) -> SubgraphSampler | None:
        return SubgraphSampler.where_wanted(self.facts, self.config.data.fanouts, self.config.data.sampler)

    @property
    def known(self) -> KnownAnswers:
        return self.source.graph.known

    @cached_property
    def known_relations(self) -> KnownRelations:
        facts = self.store.iter_triples(["train"])
        return KnownRelations.of(facts, self.store.num_entities, self.store.num_relations)

    @cached_property
    def validation(self) -> FilteredTriples | None:
        """Triples for validation during training; None without a validation split."""
        if not self.store.manifest.triples.get("valid"):
            return None
        config = self.config
        triples = subsample(self.store.triples("valid"), config.evaluate.max_valid_triples, config.train.seed)
        return FilteredTriples(self.store, triples)

    def make_all(self, model: FoundationModel) -> None:
        """Build now all that ``model`` reads of the graph in training and validation."""
        make_indexes(self, model)
        if model.ranks == "entities" and self.validation is not None:
            self.validation.hold()
        _ = self.known, self.validation


def make_indexes(graph: StepGraph, model: FoundationModel) -> None:
    """Build now all that ``model`` reads of a graph in steps and, if nothing is hidden, in validation, by a step on one
    fact."""
    facts = graph.facts
    head, relation, tail = facts.triples[:1].T
    for tokens in (facts.tokens[name] for name in model.reads if name in facts.tokens):
        _ = tokens.likeness(head) if graph.surroundings is None else tokens.part(head)
    weight = facts.mask_without(head, relation, tail)
    if model.ranks == "relations":
        output = model.relation_scores(facts, head, tail, weight)
    elif graph.surroundings is None:
        output = model(facts, head, relation, weight)
    else:
        output = model.relation_states(facts, head, relation, weight)
    if output.requires_grad:
        output.sum().backward()
    model.zero_grad(set_to_none=True)
    if model.ranks == "entities":
        with torch.no_grad():
            model.relation_states(facts, head, relation)
