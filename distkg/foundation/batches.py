"""What a foundation model is asked in a step, and the wrong answers beside the right ones.

As ULTRA is pre-trained (Galkin et al. 2024, section 5.1): graphs in proportion to their facts; half of a batch asks
for tails and half for heads; the facts that are asked about are hidden; negatives are never known answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.config import RunConfig
from distkg.foundation.graphs.training_graphs import LearnedGraph
from distkg.foundation.layers.relational import of_query
from distkg.foundation.models import KnowledgeGraph
from distkg.negatives import Negatives, Queries, TrainingProgress, known_facts
from distkg.randomness import Purpose, stream
from distkg.sharding.ranks import Ranks

REDRAWS = 4  # of negatives that turn out to be known answers


@dataclass(frozen=True)
class FoundationBatch:
    """Queries of one step on this rank, with the facts that they hide.

    Attributes:
        learned: the graph whose facts they are.
        queries: with their answers, b of them.
        generator: what else falls by lot in this step.
    """

    learned: LearnedGraph
    queries: Queries
    generator: torch.Generator

    @property
    def graph(self) -> KnowledgeGraph:
        return self.learned.facts

    def weight(self, device: torch.device, chosen: Tensor | None = None) -> Tensor:
        """Of the graph's facts, or of those that are ``chosen``, int64 [m]: float32 [E] or [m], 0 where hidden."""
        asked = self.queries
        anchor, relation, answer = (side.to(device) for side in (asked.anchor, asked.relation, asked.answer))
        return self.graph.mask_without(anchor, relation, answer, chosen)


def queries_of_rank(config: RunConfig, workers: int) -> int:
    """Queries that each of so many workers asks in a step."""
    return max(2, config.train.batch_size // workers)


def steps_of_epoch(config: RunConfig, facts: int, workers: int) -> int:
    """As configured, or as many as ask about every fact once."""
    return config.train.steps_per_epoch or max(1, round(facts / (queries_of_rank(config, workers) * workers)))


class FoundationBatches:
    """Batches as a function of (seed, epoch, step, rank)."""

    def __init__(self, graphs: Sequence[LearnedGraph], config: RunConfig, ranks: Ranks) -> None:
        self._graphs, self._ranks, self._seed = graphs, ranks, config.train.seed
        self._size = queries_of_rank(config, ranks.size)
        self._sizes = torch.tensor([graph.store.manifest.triples["train"] for graph in graphs], dtype=torch.float64)
        self.steps = steps_of_epoch(config, int(self._sizes.sum()), ranks.size)
        self.triples = self.steps * self._size * ranks.size

    def batch(self, epoch: int, step: int) -> FoundationBatch:
        """This rank's."""
        generator = stream(Purpose.GRAPH, self._seed, epoch, step, self._ranks.rank)
        learned = self._graphs[int(torch.multinomial(self._sizes, 1, generator=generator))]
        graph = learned.facts
        chosen = torch.randint(len(graph.triples), (self._size,), generator=generator)
        return FoundationBatch(learned, both_ways(graph.triples[chosen], graph.relations), generator)


def negatives_for(asked: FoundationBatch, states: Tensor, count: int, moment: TrainingProgress) -> Negatives:
    """Wrong answers, known ones drawn again; ``states`` float32 [b, 2R, d] are the model's, of relations."""
    source, queries, generator = asked.learned.source, asked.queries, asked.generator
    source.advance(moment)
    own = queries.relation.to(states.device)
    drawn = source.draw_by(lambda: similarity_to_own(states, own).cpu(), queries, count, generator)
    right = partial(known_facts, asked.learned.known, queries.anchor, queries.relation, per_row=1)
    entities = drawn.entities
    for _ in range(REDRAWS):
        wrong = right(entities)
        if not bool(wrong.any()):
            break
        entities = torch.where(wrong, torch.randint(source.entities, entities.shape, generator=generator), entities)
    mask = right(entities)
    return Negatives(entities, mask if drawn.mask is None else mask | drawn.mask, drawn.made)


def similarity_to_own(states: Tensor, relation: Tensor) -> Tensor:
    """Cosines of each query's relation with all others, by their states: float32 [b, R] of states [b, 2R, d] and
    relations int64 [b] in [0, 2R), all without inverses."""
    relations = states.shape[1] // 2
    directed = F.normalize(states.detach()[:, :relations], dim=-1)
    own = of_query(directed, relation % relations)
    return torch.einsum("brd,bd->br", directed, own)


def both_ways(triples: Tensor, relations: int) -> Queries:
    """The first half of triples int64 [b, 3] as queries for their tails, the second for their heads."""
    half = len(triples) // 2
    (head, relation, tail), (other_head, inverse, other_tail) = triples[:half].T, triples[half:].T
    return Queries(
        anchor=torch.cat([head, other_tail]),
        relation=torch.cat([relation, inverse + relations]),
        answer=torch.cat([tail, other_head]),
    )
