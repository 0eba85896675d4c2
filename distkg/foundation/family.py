"""Family of foundation models: networks that read any graph and rank its entities."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from distkg.config import ConfigError, RunConfig
from distkg.data.fresh_graph import fresh_graph
from distkg.data.store.graph_store import Store
from distkg.foundation.base import FoundationModel
from distkg.foundation.graphs.training_graphs import LearnedGraph, graphs_of
from distkg.foundation.initial_model import made_graph
from distkg.foundation.learner import FoundationLearner
from distkg.foundation.model_files import is_model, load_model, weights_sha256
from distkg.foundation.models import MODELS
from distkg.foundation.plan import actor_memory, plan_foundation
from distkg.foundation.zero_shot import best_zero_shot, evaluate_zero_shot, reasons_for
from distkg.planning.plan import Plan
from distkg.planning.resources import Resources
from distkg.sharding.ranks import Ranks
from distkg.training.family import Extensible, GraphChoice, Predictor, QuestionError
from distkg.training.schedule import Schedule
from distkg.training.services import Services


class FoundationFamily:
    """``Family`` of foundation models."""

    shares_graphs, has_vectors = True, False

    def addresses(self, config: RunConfig) -> list[str]:
        return graphs_of(config)

    def stores(self, config: RunConfig) -> list[Store]:
        return [Store.open(address) for address in graphs_of(config)]

    def model_options(self, name: str) -> type[BaseModel]:
        return MODELS[name].Options

    def inputs(self, config: RunConfig) -> dict[str, str | None]:
        start = config.model.start
        return {"model.start": weights_sha256(Path(start))} if start else {}

    def plan(self, config: RunConfig, resources: Resources) -> Plan:
        if resources.elsewhere or resources.graph is not None:
            raise ConfigError(
                "a foundation model is planned by steps that are measured here, on its own graphs: --cluster and "
                "--graph are for embeddings. Use --workers, and cluster.memory_per_worker_gb for other machines"
            )
        slowdown = None if resources.measure is None else resources.slowdown
        planned = plan_foundation(
            config, resources.memory, workers_of_node=resources.workers_of_node, slowdown=slowdown
        )
        return replace(planned, warnings=(*planned.warnings, *_missing_tokens(planned)))

    def published_bytes(self, config: RunConfig) -> int:
        return 0  # weights of the relation encoder, which are few

    def actor_bytes(self, config: RunConfig) -> int:
        return sum(actor_memory(config, self.stores(config)).values()) if config.negatives.pool.actors else 0

    def learner(self, config: RunConfig, ranks: Ranks, schedule: Schedule, services: Services) -> FoundationLearner:
        return FoundationLearner(config, ranks, schedule, services)

    def make_shared(self, config: RunConfig, address: str) -> LearnedGraph:
        return made_graph(address, config)

    def holds_model(self, folder: Path) -> bool:
        return is_model(folder)

    @contextmanager
    def open(self, folder: Path, ranks: Ranks, graph: GraphChoice) -> Iterator[Predictor]:
        model = load_model(folder)
        with facts_of(model, graph) as store:
            yield Predictor(
                model=model.name,
                store=store,
                evaluate=lambda split, triples: evaluate_zero_shot(
                    model, store, split, fanouts=graph.fanouts, triples=triples, ranks=ranks
                ),
                topk=best_zero_shot(model, store, fanouts=graph.fanouts, ranks=ranks),
                explain=partial(reasons_for, model, store),
            )

    def open_to_extend(self, run: Path, store: str) -> Extensible:
        raise QuestionError(
            f"{run} holds a foundation model, which has no rows of entities: it reads the facts of any graph, and "
            "nothing need be learned of new ones. Put all facts into a store with `distkg prepare`, and pass it with "
            "--store to `distkg evaluate` or `distkg predict`"
        )


def facts_of(model: FoundationModel, graph: GraphChoice) -> AbstractContextManager[Store]:
    """Return a context manager that opens the graph that a model reads.

    Raises:
        QuestionError: no graph is named, or two are.
    """
    if (graph.store is None) == (graph.triples is None):
        raise QuestionError(f"{model.name} is a foundation model: pass its graph with {graph.offered}")
    if graph.store is not None:
        return nullcontext(Store.open_inference(graph.store))
    tell = {} if graph.tell is None else {"tell": graph.tell}
    return fresh_graph(str(graph.triples), model.reads, **tell)


def _missing_tokens(planned: Plan) -> tuple[str, ...]:
    if not planned.reads or any(graph.tokens for graph in planned.graphs):
        return ()
    return (
        f"the model reads tokens of {', '.join(planned.reads)}, and no graph has them, so it learns from facts alone; "
        "`distkg tokens` makes them",
    )


FAMILY = FoundationFamily()
