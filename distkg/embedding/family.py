"""Family of embedding models, which have a vector for each entity of one graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from distkg.config import ConfigError, RunConfig
from distkg.data.store.graph_store import Store
from distkg.embedding.build import check_objective, check_sources
from distkg.embedding.footprint import (
    GraphCounts,
    actor_footprint,
    asks_distinct_queries,
    message_bytes,
    over_all_entities,
    published_bytes,
)
from distkg.embedding.growth.checkpoint import open_to_extend
from distkg.embedding.growth.settings import first_trained_fact, frozen_counts
from distkg.embedding.learner import EmbeddingLearner
from distkg.embedding.load_run import load_run
from distkg.embedding.plan import count_distinct_queries, measured_times, plan
from distkg.embedding.scorers import SCORERS, make_scorer
from distkg.evaluation.metrics import evaluate_triples
from distkg.evaluation.topk import top_answers
from distkg.planning.plan import Plan, with_fewest_workers
from distkg.planning.resources import Resources
from distkg.sharding.ranks import Ranks
from distkg.training.family import Extensible, GraphChoice, Predictor, QuestionError
from distkg.training.provenance import open_named
from distkg.training.schedule import Schedule
from distkg.training.services import Services

COUNTED_TRIPLES = 5_000_000  # above this, distinct queries are not counted, and the estimate of time is an upper bound


class EmbeddingFamily:
    """``Family`` of embedding models."""

    shares_graphs, has_vectors = False, True

    def addresses(self, config: RunConfig) -> list[str]:
        if not config.data.store:
            raise ConfigError(
                "data.store is empty: name a store made by `distkg prepare`, as in --set data.store=stores/x"
            )
        return [config.data.store]

    def stores(self, config: RunConfig) -> list[Store]:
        return [open_named(address) for address in self.addresses(config)]

    def model_options(self, name: str) -> type[BaseModel]:
        return SCORERS[name].Options

    def inputs(self, config: RunConfig) -> dict[str, str | None]:
        return {}

    def plan(self, config: RunConfig, resources: Resources) -> Plan:
        if resources.graph is not None:
            check_objective(config)
            return _plan(config, resources, resources.graph)
        (store,) = self.stores(config)
        check_objective(config)
        check_sources(config, store)
        frozen_counts(config, store)
        first = first_trained_fact(config, store.manifest)
        distinct = None
        few = store.manifest.triples.get("train", 0) <= COUNTED_TRIPLES
        if resources.measure is not None and few and asks_distinct_queries(config):
            distinct = count_distinct_queries(store.iter_triples(["train"], first=first), store.num_relations)
        return _plan(config, resources, store.manifest, distinct, first)

    def published_bytes(self, config: RunConfig) -> int:
        if not config.negatives.pool.actors:
            return 0
        (store,) = self.stores(config)
        with torch.device("meta"):
            scorer = make_scorer(config.model)
        messages = config.train.workers * message_bytes(config, store.manifest, scorer)
        return published_bytes(config, store.num_entities, scorer) + messages

    def actor_bytes(self, config: RunConfig) -> int:
        if not config.negatives.pool.actors or over_all_entities(config):
            return 0
        (store,) = self.stores(config)
        with torch.device("meta"):
            scorer = make_scorer(config.model)
        return sum(actor_footprint(with_fewest_workers(config), store.manifest, scorer).values())

    def learner(self, config: RunConfig, ranks: Ranks, schedule: Schedule, services: Services) -> EmbeddingLearner:
        return EmbeddingLearner(config, ranks, schedule, services)

    def make_shared(self, config: RunConfig, address: str) -> Any:
        return None

    def holds_model(self, folder: Path) -> bool:
        return False  # vectors are stored only in the checkpoints of runs

    def open_to_extend(self, run: Path, store: str) -> Extensible:
        return open_to_extend(run, store)

    @contextmanager
    def open(self, folder: Path, ranks: Ranks, graph: GraphChoice) -> Iterator[Predictor]:
        if graph.triples is not None:
            raise QuestionError(
                f"--graph: for foundation models; {folder} is a run of embeddings, which belong to the entities of its "
                "own store. Leave --graph out"
            )
        if graph.fanouts:
            raise QuestionError(
                f"--fanouts: for foundation models that rank entities; {folder} does not hold one. Leave --fanouts out"
            )
        model, store, config = load_run(folder, ranks, graph.store or "", graph.scope)
        settings, seed = config.evaluate, config.train.seed  # the subset of evaluate.max_final_triples
        sizes = {"batch_size": settings.batch_size, "memory_mb": settings.memory_mb}

        def export(to: Path, index: bool) -> None:
            from distkg.inference.export import export_model

            export_model(model, store, config.model, to, index=index)

        yield Predictor(
            model=config.model.name,
            store=store,
            evaluate=lambda split, triples: evaluate_triples(model, store, split, triples, seed, **sizes),
            topk=partial(top_answers, model),
            export=export,
        )


FAMILY = EmbeddingFamily()


def _plan(
    config: RunConfig,
    resources: Resources,
    counts: GraphCounts,
    distinct_queries: int | None = None,
    first_fact: int = 0,
) -> Plan:
    machine = times = None
    if resources.measure is not None:
        machine = resources.measure()
        # Elsewhere a scorer takes as much longer, or less, as matrix products do.
        slowdown = resources.slowdown if resources.here is None else resources.here().flops / machine.flops
        times = measured_times(config).slower(slowdown)
    return plan(
        config,
        counts,
        resources.memory,
        machine,
        gpu_available=resources.gpu_memory,
        disk_available=resources.disk,
        distinct_queries=distinct_queries,
        first_fact=first_fact,
        times=times,
    )
