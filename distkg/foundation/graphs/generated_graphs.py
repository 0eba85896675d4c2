"""Generated graphs with planted rules, from which a foundation model learns besides its stores or instead of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from distkg.config import GeneratedConfig, RunConfig
from distkg.data.rules.growing import GraphSizes
from distkg.data.rules.rule_graph import SIZES, RuleGraph, rule_graph
from distkg.data.store.classes import Classes
from distkg.data.store.known_answers import KnownAnswers
from distkg.data.store.known_relations import KnownRelations
from distkg.foundation.graphs.sampling import SubgraphSampler
from distkg.foundation.models import KnowledgeGraph
from distkg.negatives import NegativeSource, TrainingGraph, make_source
from distkg.randomness import Purpose, mixed_seed


@dataclass(frozen=True, eq=False)
class GeneratedGraph:
    """``StepGraph`` of a graph with planted rules: steps ask about its held-out facts, none of which it shows.

    Attributes:
        made: the graph.
        config: configuration of the run.
        source: negative source, which knows the held-out facts too.
    """

    made: RuleGraph
    config: RunConfig
    source: NegativeSource

    @classmethod
    def of(cls, made: RuleGraph, config: RunConfig) -> GeneratedGraph:
        """Add the negative source of a run.

        Raises:
            SourceError: generated graphs lack what the negative source needs.
        """
        every = np.concatenate([made.train, made.held_out])
        graph = TrainingGraph.of_triples(every, made.entities, made.relations, classes_of(made))
        return cls(made, config, make_source(config.negatives.source, config.negatives.options, graph))

    @cached_property
    def facts(self) -> KnowledgeGraph:
        return KnowledgeGraph(torch.from_numpy(self.made.train).long(), self.made.entities, self.made.relations)

    @cached_property
    def questions(self) -> Tensor:
        return torch.from_numpy(self.made.held_out).long()

    @cached_property
    def surroundings(self) -> SubgraphSampler | None:
        return SubgraphSampler.where_wanted(self.facts, self.config.data.fanouts, self.config.data.sampler)

    @property
    def known(self) -> KnownAnswers:
        return self.source.graph.known

    @cached_property
    def known_relations(self) -> KnownRelations:
        return KnownRelations.of([self.source.graph.triples], self.made.entities, self.made.relations)


def classes_of(made: RuleGraph) -> Classes:
    """Return the kind of each entity as its class, and the kinds of heads and tails as those that relations require."""
    labels = [f"kind_{kind}" for kind in range(made.classes + 1)]
    required = np.concatenate([made.ends[:, 1], made.ends[:, 0]])
    return Classes(pa.array(labels, pa.utf8()), np.arange(made.entities + 1), made.kind, required)


def sizes_at(settings: GeneratedConfig, progress: float) -> GraphSizes:
    """Return the ranges of sizes at a share of the epochs: the curriculum raises their upper ends."""
    grown = min(1.0, progress / settings.curriculum) if settings.curriculum else 1.0
    (fewest, most), (few, many) = settings.entities, settings.relations
    return GraphSizes(
        (fewest, round(fewest * (most / fewest) ** grown)), (few, round(few * (many / few) ** grown)), SIZES.density
    )


class GeneratedGraphs:
    """Generated graphs of one rank, as a function of (seed, step, rank): each block of steps has another one."""

    def __init__(self, config: RunConfig, rank: int) -> None:
        self._config, self._rank = config, rank
        self._last: tuple[int, GeneratedGraph] | None = None

    def of_step(self, step: int, steps: int) -> GeneratedGraph:
        """Return the graph of a step, of so many steps over all epochs."""
        settings = self._config.data.generated
        block = step // settings.steps_per_graph
        if self._last is None or self._last[0] != block:
            sizes = sizes_at(settings, block * settings.steps_per_graph / steps)
            seed = mixed_seed(Purpose.GENERATED, self._config.train.seed, block, self._rank)
            self._last = block, GeneratedGraph.of(rule_graph(seed, sizes), self._config)
        return self._last[1]


def largest_graph(config: RunConfig) -> GeneratedGraph:
    """Return a graph of the largest sizes that a run generates, for plans and checks; raises as
    ``GeneratedGraph.of``."""
    settings = config.data.generated
    entities, relations, density = settings.entities[1], settings.relations[1], SIZES.density[1]
    sizes = GraphSizes((entities, entities), (relations, relations), (density, density))
    return GeneratedGraph.of(rule_graph(0, sizes), config)
