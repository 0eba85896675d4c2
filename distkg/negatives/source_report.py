"""Report on a negative source on a graph: examples, pool sizes, false negatives and time of a draw."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distkg.data.store.graph_store import Store
from distkg.data.store.known_answers import KnownAnswers
from distkg.negatives.base import Negatives, NegativeSource, Queries, SourceError, TrainingProgress, make_source
from distkg.negatives.known_facts import known_facts
from distkg.negatives.model_view import ModelView
from distkg.negatives.training_graph import TrainingGraph

SMALL_POOLS = (0, 2, 10, 40, 100)
_TIMED_QUERIES, _TIMED_SECONDS = 1024, 0.3
_LEARNING_ROUNDS = 200


@dataclass(frozen=True)
class Example:
    """One query with its answer and some negatives, as labels; the inverse of a relation is shown as r⁻¹."""

    anchor: str
    relation: str
    answer: str
    negatives: list[str]


@dataclass(frozen=True)
class Examination:
    """Statistics of a source on a sample of training queries.

    Attributes:
        source: its name.
        queries: size of the sample.
        negatives: number drawn for each query.
        mean_pool, median_pool: number of entities from which a query's negatives are drawn.
        small_pools: size → share of queries whose pool has at most that size.
        left_out: share of masked negatives, such as those of empty pools.
        known: share of the unmasked negatives that answer their query in training.
        false: share of the unmasked negatives that answer it in valid or test, which are false negatives.
        nanoseconds: time of one draw.
        cost: the same relative to uniform draws for each query.
        examples: some queries.
    """

    source: str
    queries: int
    negatives: int
    mean_pool: float
    median_pool: float
    small_pools: dict[int, float]
    left_out: float
    known: float
    false: float
    nanoseconds: float
    cost: float
    examples: list[Example]


def examine(
    store: Store,
    name: str,
    options: Mapping[str, Any],
    *,
    sample: int,
    count: int,
    show: int,
    seed: int,
    model: ModelView | None = None,
) -> Examination:
    """Draw ``count`` negatives for each of ``sample`` training queries; ``model`` is for sources that read one.

    Raises:
        UnknownNameError, ConfigError, SourceError: as ``make_source``.
    """
    graph = TrainingGraph.of_store(store)
    source = make_source(name, options, graph)
    if model is not None:
        source.attach(model)
    queries = _some_queries(graph, sample, seed)
    drawn = source.draw(queries, count, torch.Generator().manual_seed(seed))
    if drawn.made is not None:
        drawn = _learn_and_make(source, queries, count)
    is_negative = torch.ones_like(drawn.entities, dtype=torch.bool) if drawn.mask is None else ~drawn.mask
    known = _answers_among(graph.known, queries, drawn.entities) & is_negative
    held_out = np.concatenate([store.triples("valid"), store.triples("test")])
    held_out_answers = KnownAnswers.from_triples(held_out, graph.relations)
    false = _answers_among(held_out_answers, queries, drawn.entities) & is_negative
    pools = source.pool_sizes(queries).double()
    total = max(int(is_negative.sum()), 1)
    own, uniform = (_time(each, queries, count) for each in (source, make_source("uniform", {}, graph)))
    return Examination(
        source=name,
        queries=len(queries),
        negatives=count,
        mean_pool=float(pools.mean()),
        median_pool=float(pools.median()),
        small_pools={size: float((pools <= size).double().mean()) for size in SMALL_POOLS},
        left_out=float((~is_negative).double().mean()),
        known=int(known.sum()) / total,
        false=int(false.sum()) / total,
        nanoseconds=own,
        cost=own / uniform,
        examples=_examples(store, queries, drawn.entities, is_negative, show),
    )


def _learn_and_make(source: NegativeSource, queries: Queries, count: int) -> Negatives:
    """Return the negatives that a learning source generates for these queries, as entities, after some rounds of
    learning.

    Raises:
        SourceError: it generates vectors, which have no labels to show.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(_LEARNING_ROUNDS):
        some = torch.randint(len(queries), (min(len(queries), _TIMED_QUERIES),), generator=generator)
        source.draw(queries[some], 1, generator)
    source.advance(TrainingProgress(epochs=1e6, progress=0.5))  # all cached negatives are due for renewal
    generated = source.draw(queries, count, generator).made
    if generated is None or generated.entities is None:
        raise SourceError(
            "generated vectors have no labels to show: set negatives.options to {negatives: snap}, which generates "
            "entities"
        )
    return Negatives(generated.entities, generated.mask)


def _some_queries(graph: TrainingGraph, sample: int, seed: int) -> Queries:
    everything = graph.queries()
    chosen = np.random.default_rng(seed).choice(len(everything), min(sample, len(everything)), replace=False)
    return Queries(*torch.from_numpy(everything[chosen]).T.contiguous())


def _answers_among(known: KnownAnswers, queries: Queries, negatives: Tensor) -> Tensor:
    return known_facts(known, queries.anchor, queries.relation, negatives, 1)


def _time(source: NegativeSource, queries: Queries, count: int) -> float:
    """Return the nanoseconds of one draw; the first round, which may compile, does not count."""
    some, generator = queries[:_TIMED_QUERIES], torch.Generator().manual_seed(0)
    source.draw(some, count, generator)
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < _TIMED_SECONDS:
        source.draw(some, count, generator)
        rounds += 1
    return 1e9 * (time.perf_counter() - start) / (rounds * len(some) * count)


def _examples(store: Store, queries: Queries, negatives: Tensor, given: Tensor, show: int) -> list[Example]:
    relations = store.relation_labels()
    examples = []
    for i in range(min(show, len(queries))):
        entities = torch.cat([queries.anchor[i : i + 1], queries.answer[i : i + 1], negatives[i][given[i]]])
        anchor, answer, *others = store.entity_labels_of(entities.numpy())
        backwards, relation = divmod(int(queries.relation[i]), store.num_relations)
        label = relations[relation].as_py() + ("⁻¹" if backwards else "")
        examples.append(Example(anchor, label, answer, others))
    return examples
