"""Batches of queries and negatives for the training of foundation models.

They follow the pre-training of ULTRA (Galkin et al. 2024, section 5.1): graphs are drawn in proportion to their facts,
or are generated in a share of the steps; half of the queries are for tails and half for heads; the facts of the batch
are masked in the graph; negatives are never known answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.config import RunConfig
from distkg.foundation.graphs.generated_graphs import GeneratedGraphs
from distkg.foundation.graphs.training_graphs import LearnedGraph, StepGraph
from distkg.foundation.layers.relational import of_query
from distkg.foundation.models import KnowledgeGraph
from distkg.negatives import Negatives, Queries, TrainingProgress, known_facts
from distkg.randomness import Purpose, stream
from distkg.sharding.ranks import Ranks
from distkg.training.learner import check_batch

REDRAWS = 4  # attempts to replace negatives that are known answers


@dataclass(frozen=True)
class FoundationBatch:
    """Queries of one step on this rank, whose facts are masked in the graph.

    Attributes:
        learned: graph that the queries are drawn from.
        queries: b queries with their answers.
        generator: random generator of all other draws of this step.
    """

    learned: StepGraph
    queries: Queries
    generator: torch.Generator

    @property
    def graph(self) -> KnowledgeGraph:
        return self.learned.facts

    def weight(self, device: torch.device, chosen: Tensor | None = None) -> Tensor:
        """Return the weights of the graph's facts, or of those ``chosen``, int64 [m]: float32 [E] or [m], 0 for facts
        of the batch."""
        queries = self.queries
        anchor, relation, answer = (side.to(device) for side in (queries.anchor, queries.relation, queries.answer))
        return self.graph.mask_without(anchor, relation, answer, chosen)


def queries_of_rank(config: RunConfig, rank: int, workers: int) -> int:
    """Return the number of queries of a worker in a step; the first workers have one more if they cannot be equal."""
    each, more = divmod(config.train.batch_size, workers)
    return each + (rank < more)


def steps_of_epoch(config: RunConfig, facts: int) -> int:
    """Return the steps of an epoch: as configured, or one query for each fact."""
    return config.train.steps_per_epoch or max(1, round(facts / config.train.batch_size))


class FoundationBatches:
    """Batches as a function of (seed, epoch, step, rank).

    Attributes:
        queries: number of queries of a step over all ranks.
        steps: number of steps in an epoch.
        triples: number of facts that an epoch asks about, over all ranks.
    """

    def __init__(self, graphs: Sequence[LearnedGraph], config: RunConfig, ranks: Ranks) -> None:
        """
        Raises:
            ConfigError: as ``check_batch``.
        """
        check_batch(config, ranks.size)
        self._graphs, self._ranks, self._seed = graphs, ranks, config.train.seed
        self.queries, self._own = config.train.batch_size, queries_of_rank(config, ranks.rank, ranks.size)
        self._sizes = torch.tensor([graph.store.manifest.triples["train"] for graph in graphs], dtype=torch.float64)
        self.steps = steps_of_epoch(config, int(self._sizes.sum()))
        self.triples = self.steps * self.queries
        self._generated_share, self._epochs = config.data.generated.share, config.train.epochs
        self._generated = GeneratedGraphs(config, ranks.rank)

    def batch(self, epoch: int, step: int) -> FoundationBatch:
        """Return this rank's batch of a step."""
        generator = stream(Purpose.GRAPH, self._seed, epoch, step, self._ranks.rank)
        learned = self._graph(epoch, step, generator)
        questions, relations = learned.questions, learned.facts.relations
        chosen = torch.randint(len(questions), (self._own,), generator=generator)
        odd = (step + self._ranks.rank) % 2  # an odd number has one more for heads and for tails by turns
        tails = (self._own + odd) // 2
        return FoundationBatch(learned, both_ways(questions[chosen], relations, tails), generator)

    def _graph(self, epoch: int, step: int, generator: torch.Generator) -> StepGraph:
        if self._generated_share and float(torch.rand((), generator=generator)) < self._generated_share:
            return self._generated.of_step(epoch * self.steps + step, self._epochs * self.steps)
        return self._graphs[int(torch.multinomial(self._sizes, 1, generator=generator))]


def negatives_for(asked: FoundationBatch, states: Tensor, count: int, moment: TrainingProgress) -> Negatives:
    """Draw negatives for a batch, and redraw known answers; ``states`` are the model's relation states, float32
    [b, 2R, d]."""
    source, queries, generator = asked.learned.source, asked.queries, asked.generator
    source.advance(moment)
    own = queries.relation.to(states.device)
    drawn = source.draw_by(lambda: similarity_to_own(states, own).cpu(), queries, count, generator)
    is_known = partial(known_facts, asked.learned.known, queries.anchor, queries.relation, per_row=1)
    entities = drawn.entities
    for _ in range(REDRAWS):
        known = is_known(entities)
        if not bool(known.any()):
            break
        entities = torch.where(known, torch.randint(source.entities, entities.shape, generator=generator), entities)
    mask = is_known(entities)
    return Negatives(entities, mask if drawn.mask is None else mask | drawn.mask, drawn.made)


def similarity_to_own(states: Tensor, relation: Tensor) -> Tensor:
    """Return the cosine similarity of each query's relation with all relations, float32 [b, R].

    Args:
        states: relation states, float32 [b, 2R, d]; inverse relations are ignored.
        relation: int64 [b], in [0, 2R).
    """
    relations = states.shape[1] // 2
    directed = F.normalize(states.detach()[:, :relations], dim=-1)
    own = of_query(directed, relation % relations)
    return torch.einsum("brd,bd->br", directed, own)


def both_ways(triples: Tensor, relations: int, tails: int) -> Queries:
    """Return the first ``tails`` of triples int64 [b, 3] as queries for their tails, the others for their heads."""
    (head, relation, tail), (other_head, inverse, other_tail) = triples[:tails].T, triples[tails:].T
    return Queries(
        anchor=torch.cat([head, other_tail]),
        relation=torch.cat([relation, inverse + relations]),
        answer=torch.cat([tail, other_head]),
    )
