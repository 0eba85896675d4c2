"""Memory estimate: upper bound of a worker's peak bytes, from the shapes that training allocates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from distkg.config import RunConfig
from distkg.data.store.known_answers import SORTED_QUERY_BYTES
from distkg.embedding.loop import WINDOW
from distkg.embedding.scorers import Scorer
from distkg.negatives import SOURCES, depends_on_query, source_memory
from distkg.negatives.prefetch.prefetched_source import hosted_parts
from distkg.objectives import ALL_ENTITIES, NON_NEGATIVE, QUERY_SAMPLING
from distkg.planning.sizes import BASE_PROCESS, CATEGORY_BYTES, FLOAT, INDEX, READ_BATCH, READ_BYTES
from distkg.sharding.optimizers import OPTIMIZERS

ON_DEVICE = frozenset(
    {"entity table", "optimizer state", "relations and networks", "exchange buffers", "objective", "evaluation"}
)
"""Parts of the footprint that are in GPU memory, if the worker has a GPU."""


class GraphCounts(Protocol):
    """Counts of a graph that a plan needs, as in the manifest of a store."""

    @property
    def entities(self) -> int: ...
    @property
    def relations(self) -> int: ...
    @property
    def triples(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class StepSizes:
    """Sizes of one training step on one worker.

    Attributes:
        queries: queries of the step over all workers.
        own: queries of this worker.
        drawn: negatives that this worker draws.
        rows: upper bound of the distinct entity rows that this worker fetches.
        scores: number of scores that this worker computes.
    """

    queries: int
    own: int
    drawn: int
    rows: int
    scores: int


def over_all_entities(config: RunConfig) -> bool:
    """Return True if the objective updates every entity in every step, instead of answers and negatives only."""
    return config.objective.name in (*ALL_ENTITIES, QUERY_SAMPLING, NON_NEGATIVE)


def asks_distinct_queries(config: RunConfig) -> bool:
    """Return True if a step consists of distinct queries with all their answers, instead of triples."""
    grouped = config.objective.group_answers or config.objective.name == "k_vs_all"
    return config.objective.name in ALL_ENTITIES and grouped


def shares_negatives(config: RunConfig) -> bool:
    """Return True if the queries of a chunk share their negatives."""
    negatives = config.negatives
    return negatives.shared and not depends_on_query(negatives.source, negatives.options)


def shard_rows(config: RunConfig, counts: GraphCounts) -> int:
    """Return the number of entity rows of the largest shard."""
    return -(-counts.entities // config.train.workers)


def step_sizes(config: RunConfig, counts: GraphCounts) -> StepSizes:
    """Compute the sizes of a training step of a configuration."""
    queries = config.train.batch_size * (1 if asks_distinct_queries(config) else 2)
    own = -(-queries // config.train.workers)
    if over_all_entities(config):
        with_answers = config.objective.name not in ALL_ENTITIES
        shares = {QUERY_SAMPLING: config.objective.query_share, NON_NEGATIVE: 0.0}
        compared = math.ceil(queries * shares.get(config.objective.name, 1.0)) * shard_rows(config, counts)
        rows = min(2 * own if with_answers else own, counts.entities)
        return StepSizes(queries, own, 0, rows, compared + own if with_answers else compared)
    negatives = config.negatives
    drawn = negatives.count * (-(-own // negatives.chunk_size) if shares_negatives(config) else own)
    return StepSizes(queries, own, drawn, min(own + drawn, counts.entities), own * (negatives.count + 1))


def relation_floats(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    """Count the replicated floats: relation vectors and the scorer's own layers."""
    relations = counts.relations * (2 if config.model.inverse == "learned" else 1)
    return relations * scorer.relation_width + sum(parameter.numel() for parameter in scorer.parameters())


def footprint(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> dict[str, int]:
    """Estimate the bytes of the largest worker, by use."""
    floats = shard_rows(config, counts) * scorer.entity_width
    stored = floats * (2 if config.model.dtype == "bfloat16" else FLOAT)
    columns = OPTIMIZERS[config.optimizer.name].columns(scorer.entity_width)
    state = shard_rows(config, counts) * sum(columns.values()) * FLOAT
    dense = relation_floats(config, counts, scorer) * FLOAT
    accumulators = 2 if config.optimizer.name == "adam" else 1
    return {
        "base process": BASE_PROCESS,
        "entity table": stored,
        "optimizer state": state,
        "relations and networks": dense * (2 + accumulators),  # with value and gradient
        "checkpoint copy": stored + state + dense * (1 + accumulators),  # while a checkpoint is written
        "exchange buffers": _exchange(config, counts, scorer),
        "objective": _all_entities(config, counts, scorer)
        if over_all_entities(config)
        else _sampled(config, counts, scorer),
        "evaluation": _evaluation(config, counts, scorer),
        "training triples": _training_triples(config, counts),
        "batches": _batches(config, counts),
        "known facts": _known_facts(config, counts),
        "negative source": _negative_source(config, counts),
        "vectors for actors": _published(config, counts, scorer),
    }


def _exchange(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    # Rows requested and served, their gradients in both directions and summed; with overlap, the next step's rows too.
    sets = 5 if config.train.workers > 1 else 2
    return (sets + config.train.overlap) * step_sizes(config, counts).rows * scorer.entity_width * FLOAT


def _sampled(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    sizes = step_sizes(config, counts)
    drawn = sizes.drawn if shares_negatives(config) else 0  # unshared negatives are read in place
    vectors = 8 * sizes.own + 2 * drawn  # anchor, relation, query, answer and negatives, with their gradients
    return (vectors * scorer.entity_width + 4 * sizes.scores) * FLOAT


def _all_entities(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    sizes = step_sizes(config, counts)
    shard = shard_rows(config, counts) * scorer.entity_width
    vectors = 6 * sizes.queries * scorer.entity_width  # queries of all workers, and their gradients
    block = min(config.objective.score_memory_mb << 20, sizes.scores * FLOAT)
    gradients = 2 if config.train.overlap else 1
    if type(scorer).candidates is not Scorer.candidates:
        gradients += 2  # the answer part of each row, and its gradient
    rounding = 14 * shard if config.model.dtype == "bfloat16" else 0  # the shard in float32, updated and rounded
    return (vectors + gradients * shard) * FLOAT + block + rounding


def _evaluation(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    queries = 2 * max(counts.triples.get("valid", 0), counts.triples.get("test", 0))
    scores = config.evaluate.batch_size * shard_rows(config, counts) * FLOAT
    block = min(config.evaluate.memory_mb << 20, scores + 4 * queries * scorer.entity_width * FLOAT)
    return block + queries * 8 * INDEX


def _training_triples(config: RunConfig, counts: GraphCounts) -> int:
    own = -(-counts.triples.get("train", 0) // config.train.workers)
    return 2 * own * SORTED_QUERY_BYTES if over_all_entities(config) else own * (3 * 4 + INDEX)


def _batches(config: RunConfig, counts: GraphCounts) -> int:
    sizes = step_sizes(config, counts)
    marks = counts.entities * (1 + INDEX)  # marks of `unique_places`
    return WINDOW * (sizes.own * 6 + sizes.drawn * 2) * INDEX + marks


def _negative_source(config: RunConfig, counts: GraphCounts) -> int:
    if over_all_entities(config):
        return 0
    chosen, train = config.negatives, counts.triples.get("train", 0)
    here = [(chosen.pool.fallback, {}), *_mined(config)] if chosen.pool.actors else [(chosen.source, chosen.options)]
    own = sum(source_memory(name, options, 2 * train, config.train.workers) for name, options in here)
    return own + 3 * 4 * train if own else 0  # such a source holds the training triples


def _published(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    chosen = config.negatives
    pooled = chosen.pool.actors and not over_all_entities(config)
    pooled = pooled and len(hosted_parts(chosen.source, chosen.options)) > len(_mined(config))
    return 2 * shard_rows(config, counts) * scorer.entity_width * FLOAT if pooled else 0  # one copy in Ray's store


def _mined(config: RunConfig) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the sources for which actors only compare relations, and which draw in the step."""
    parts = hosted_parts(config.negatives.source, config.negatives.options).values()
    return [part for part in parts if SOURCES[part[0]].hosted_reply == "similarities"]


def _known_facts(config: RunConfig, counts: GraphCounts) -> int:
    everything = sum(counts.triples.values())
    # Known answers are at most all facts in both directions: 4 bytes each, and 8 more while they are sorted.
    evaluated = 2 * everything * 12 + min(everything, READ_BATCH) * READ_BYTES
    train = counts.triples.get("train", 0)
    filtered = config.negatives.filter and not over_all_entities(config)
    return evaluated + train * CATEGORY_BYTES + (2 * train * SORTED_QUERY_BYTES if filtered else 0)
