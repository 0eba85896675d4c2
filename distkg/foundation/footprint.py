"""Memory and time of a step of a foundation model, measured on graphs of a few thousand nodes.

A step's tensors grow with the number of queries, and for each query with the numbers of entities and of relations. The
peaks at two sizes give each slope, with the other number small, so the sum is an upper bound for every graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.foundation.graph_scorer import CACHE_BYTES, GraphScorer
from distkg.foundation.graphs.entity_tokens import EntityTokens
from distkg.foundation.graphs.sampling import Subgraph, SubgraphSampler
from distkg.foundation.models import FoundationModel, KnowledgeGraph
from distkg.planning.peak import peak_bytes

QUERIES = (2, 4)
# Larger than the blocks of rows in which layers are computed, because the memory of a block does not grow.
MANY_ENTITIES, FEW_ENTITIES = (4096, 8192), 16
MANY_RELATIONS, FEW_RELATIONS = (1024, 2048), 4
TOKENS = 8  # tokens of an entity, if the model reads them: the number that `distkg tokens` makes
FACTS = 64  # few, because the memory of edges does not grow with queries

MeasuredWork = Callable[[FoundationModel, KnowledgeGraph, Tensor, Tensor], object]
"""Function to measure, of a model, a graph, and queries anchor and relation int64 [b]."""


@dataclass(frozen=True)
class Growth:
    """Linear model of the peak bytes of a ``MeasuredWork``.

    Attributes:
        entity, relation: bytes for each query and each entity or relation of the graph, relations without inverses.
        query: further bytes for each query.
        once: bytes independent of the number of queries.
    """

    entity: float
    relation: float
    query: float
    once: float

    def bytes(self, queries: int, entities: int, relations: int) -> int:
        return int(queries * (self.entity * entities + self.relation * relations + self.query) + self.once)


def growth(
    model: FoundationModel,
    work: MeasuredWork,
    own_relations: int | None = None,
    own_entities: int | None = None,
    *,
    kinds: Collection[str] | None = None,
) -> Growth:
    """Measure the growth of the tensors of ``work``.

    Args:
        own_relations, own_entities: numbers of relations and entities of a model with vectors for them.
        kinds: kinds of tokens that entities have, of those that the model reads; None for all.
    """
    few, read = own_relations or FEW_RELATIONS, {k: w for k, w in model.reads.items() if kinds is None or k in kinds}
    if own_entities is not None:
        return Growth(0.0, 0.0, *_of_queries(model, work, own_entities, few, read))
    entity, by_entities = _slope(model, work, [(entities, few) for entities in MANY_ENTITIES], read)
    query, once = by_entities
    if own_relations is not None:
        return Growth(entity, 0.0, query - entity * MANY_ENTITIES[0], once)
    relation, by_relations = _slope(model, work, [(FEW_ENTITIES, relations) for relations in MANY_RELATIONS], read)
    rest = max(query - entity * MANY_ENTITIES[0], by_relations[0] - relation * MANY_RELATIONS[0], 0.0)
    return Growth(entity, relation, rest, max(once, by_relations[1]))


def _slope(
    model: FoundationModel, work: MeasuredWork, sizes: list[tuple[int, int]], read: Mapping[str, int]
) -> tuple[float, tuple[float, float]]:
    """Return the growth of a query's bytes between two ``sizes``, and at the first size ``_of_queries``."""
    measurements = [_of_queries(model, work, *size, read) for size in sizes]
    (first, second), (small, large) = sizes, (query for query, _ in measurements)
    return (large - small) / (sum(second) - sum(first)), measurements[0]


def _of_queries(
    model: FoundationModel, work: MeasuredWork, entities: int, relations: int, read: Mapping[str, int]
) -> tuple[float, float]:
    """Return the bytes of one more query, and the bytes independent of the number of queries, on entities with tokens
    of the kinds ``read``, by their widths."""
    rows = np.random.default_rng(0).integers(0, [entities, relations, entities], (FACTS, 3))
    ids = torch.arange(TOKENS).expand(entities, -1)
    tokens = {name: EntityTokens.of(ids, torch.zeros(TOKENS, width)) for name, width in read.items()}
    graph = KnowledgeGraph(torch.from_numpy(rows), entities, relations, tokens=tokens)
    model.train(not tokens)  # in training mode a model may drop tokens
    work(model, graph, *_queries(1, graph))  # builds cached tensors
    few, many = (peak_bytes(lambda count=count: work(model, graph, *_queries(count, graph))) for count in QUERIES)  # type: ignore[misc]
    query = (many - few) / (QUERIES[1] - QUERIES[0])
    return query, max(few - QUERIES[0] * query, 0.0)


def _queries(count: int, graph: KnowledgeGraph) -> tuple[Tensor, Tensor]:
    """Return queries with distinct relations if possible, because equal relations may share their states."""
    return torch.arange(count) % graph.entities, torch.arange(count) % graph.relations


def training_step(negatives: int) -> MeasuredWork:
    """Return the work of a training step with ``negatives`` for each query, gradients included."""

    def work(model: FoundationModel, graph: KnowledgeGraph, anchor: Tensor, relation: Tensor) -> None:
        weight = torch.ones(len(graph.facts))
        if model.ranks == "relations":
            scores = model.relation_scores(graph, anchor, anchor, weight)
        else:
            candidates = torch.zeros(len(anchor), 1 + negatives, dtype=torch.int64)
            scores = model(graph, anchor, relation, weight, candidates)
        _learn(model, scores)

    return work


def _learn(model: FoundationModel, scores: Tensor) -> None:
    loss = F.softplus(scores).mean()
    if loss.requires_grad:
        loss.backward()
    model.zero_grad(set_to_none=True)


def ranking(model: FoundationModel, graph: KnowledgeGraph, anchor: Tensor, relation: Tensor) -> Tensor:
    """Return the scores of all entities, or of all relations for a model that ranks relations."""
    scorer = GraphScorer(model, graph)
    if model.ranks == "relations":
        return scorer.relation_scores(torch.stack([anchor, anchor], dim=1).numpy())
    return scorer.scores(torch.stack([anchor, relation], dim=1).numpy())


def cached_states(model: FoundationModel, relations: int) -> int:
    """Return the most bytes of relation states that a scorer keeps from batch to batch on a graph of ``relations``."""
    graph, one = KnowledgeGraph(torch.zeros(1, 3, dtype=torch.int64), 1, 1), torch.zeros(1, dtype=torch.int64)
    if model.ranks == "relations" or model.encoding_keys(graph, one) is None:
        return 0
    with torch.no_grad():
        of_relation = model.relation_states(graph, one, one).nbytes
    return min(CACHE_BYTES, 2 * relations * relations * of_relation)


def own_states(model: FoundationModel, graph: KnowledgeGraph, anchor: Tensor, relation: Tensor) -> Tensor:
    """Return the relation states of queries, by which an actor compares relations."""
    with torch.no_grad():
        return model.relation_states(graph, anchor, relation)


def sampled_step(negatives: int, surroundings: SubgraphSampler) -> MeasuredWork:
    """Return the work of a training step on the subgraph around anchors and random negatives."""

    def work(model: FoundationModel, graph: KnowledgeGraph, anchor: Tensor, relation: Tensor) -> None:
        part, candidates = some_part(graph, surroundings, anchor, 1 + negatives)
        states = model.relation_states(graph, anchor, relation)
        weight = torch.ones(len(part.facts))
        scores = model.scores(part, states, part.place(anchor), relation, weight, part.place(candidates))
        _learn(model, scores)

    return work


def some_part(
    graph: KnowledgeGraph, surroundings: SubgraphSampler, anchor: Tensor, candidates: int
) -> tuple[Subgraph, Tensor]:
    """Return the subgraph that a batch of queries reads, and its random candidates int64 [b, candidates]."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(graph.entities, (len(anchor), candidates), generator=generator)
    return surroundings.of(torch.cat([anchor, drawn.flatten()]), seed=0), drawn


def seconds_of_query(
    model: FoundationModel, graph: KnowledgeGraph, work: MeasuredWork, queries: int | None = None
) -> float:
    """Return the CPU seconds per query and thread of a step with ``queries``, by default one for each of torch's
    threads; other load on the machine is not counted."""
    threads = torch.get_num_threads()
    count = queries or threads
    work(model, graph, *_queries(1, graph))  # compiles, and builds cached tensors
    start = time.process_time()
    work(model, graph, *_queries(count, graph))
    return (time.process_time() - start) / (count * threads)
