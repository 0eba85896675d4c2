"""Family of embedding models, which have a vector for each entity of one graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from distkg.config import ConfigError, RunConfig
from distkg.data.store.graph_store import Store
from distkg.embedding.build import check_objective, check_sources
from distkg.embedding.footprint import asks_distinct_queries
from distkg.embedding.learner import EmbeddingLearner
from distkg.embedding.load_run import load_run
from distkg.embedding.plan import count_distinct_queries, plan
from distkg.embedding.scorers import SCORERS
from distkg.evaluation.metrics import evaluate_triples
from distkg.evaluation.topk import top_answers
from distkg.planning.plan import Plan
from distkg.planning.resources import Resources
from distkg.sharding.ranks import Ranks
from distkg.training.family import GraphChoice, Predictor, QuestionError
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
        (store,) = self.stores(config)
        check_objective(config)
        check_sources(config, store)
        distinct, measured = None, resources.measure is not None
        few = store.manifest.triples.get("train", 0) <= COUNTED_TRIPLES
        if measured and few and asks_distinct_queries(config):
            distinct = count_distinct_queries(store.iter_triples(["train"]), store.num_relations)
        return plan(
            config,
            store.manifest,
            resources.memory,
            None if resources.measure is None else resources.measure(),
            gpu_available=resources.gpu_memory,
            distinct_queries=distinct,
        )

    def learner(self, config: RunConfig, ranks: Ranks, schedule: Schedule, services: Services) -> EmbeddingLearner:
        return EmbeddingLearner(config, ranks, schedule, services)

    def make_shared(self, config: RunConfig, address: str) -> Any:
        return None

    def holds_model(self, folder: Path) -> bool:
        return False  # vectors are stored only in the checkpoints of runs

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
        settings = config.evaluate
        sizes = {"batch_size": settings.batch_size, "memory_mb": settings.memory_mb}

        def export(to: Path, index: bool) -> None:
            from distkg.inference.export import export_model

            export_model(model, store, config.model, to, index=index)

        yield Predictor(
            model=config.model.name,
            store=store,
            evaluate=lambda split, triples: evaluate_triples(model, store, split, triples, **sizes),
            topk=partial(top_answers, model),
            export=export,
        )


FAMILY = EmbeddingFamily()
