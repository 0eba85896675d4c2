"""Foundation models as a run trains them: every rank draws a graph at each step, and asks about some of its facts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from distkg.config import ConfigError, RunConfig
from distkg.data.known import KnownAnswers
from distkg.data.manifest import Manifest
from distkg.foundation import MODELS, FoundationModel, load_model, make_model, save_model
from distkg.foundation.files import MODEL_FOLDER
from distkg.foundation.reasoner import Reasoner
from distkg.negatives import SOURCES
from distkg.objectives import SAMPLED
from distkg.sharding.ranks import Ranks
from distkg.training.checkpoint import State
from distkg.training.dense import DenseParameters
from distkg.training.foundation_batches import FoundationBatches
from distkg.training.foundation_loop import FoundationLoop
from distkg.training.graphs import LearnedGraph, graphs_of
from distkg.training.metrics import Metrics, evaluate_ranks, ranking_metrics
from distkg.training.randomness import Purpose, stream
from distkg.training.ranking import rank_by_scores
from distkg.training.record import Record
from distkg.training.schedule import Schedule
from distkg.training.services import ALONE, Services
from distkg.training.trained import view_of_run


def is_foundation(config: RunConfig) -> bool:
    """Whether the configured model is a foundation model."""
    return config.model.name in MODELS


def check_foundation(config: RunConfig) -> None:
    """Raise what a run of these settings would raise on its workers, before any starts.

    Raises:
        ConfigError, UnknownNameError: settings that exclude each other, or wrong options.
        StoreError: a graph cannot be opened.
        SourceError: a graph lacks what the negative source needs.
        ModelFileError: there is no model to go on from.
    """
    chosen = config.negatives
    if config.objective.name not in SAMPLED:
        raise ConfigError(
            f"objective.name: {config.objective.name} is for embeddings; {config.model.name} learns from negatives: "
            f"{', '.join(SAMPLED)}"
        )
    _check_vectors(config)
    if config.data.fanouts and MODELS[config.model.name].knows_entities:
        raise ConfigError(
            f"data.fanouts: {config.model.name} has vectors for the entities of a whole graph. Leave fanouts empty"
        )
    if chosen.pool.actors:
        raise ConfigError("negatives.pool.actors: a foundation model draws its negatives in the step. Set it to 0")
    start_of(config, [LearnedGraph.open(address, config).store.manifest for address in graphs_of(config)])


def _check_vectors(config: RunConfig) -> None:
    chosen, kind = config.negatives, SOURCES[config.negatives.source]
    if kind.looks_at in ("nothing", "relations"):
        return
    if not chosen.vectors:
        raise ConfigError(
            f"negatives.source: {chosen.source} looks at vectors of entities, which {config.model.name} has none of. "
            "Name a run that was trained on the same store in negatives.vectors, or choose another source"
        )
    if len(graphs_of(config)) > 1:
        raise ConfigError(
            f"negatives.vectors: those of {chosen.vectors} belong to one store: give that one alone in data.graphs"
        )
    if kind.makes and chosen.options.get("negatives") == "embedding":
        raise ConfigError(
            f"negatives.options.negatives: {config.model.name} scores entities, not vectors. Set it to snap"
        )


class FoundationLearner:
    """A ``Learner``: a foundation model, and the graphs that it learns from."""

    loop_kind: ClassVar[type[FoundationLoop]] = FoundationLoop

    def __init__(self, config: RunConfig, ranks: Ranks, schedule: Schedule, services: Services = ALONE) -> None:
        self._config, self._ranks, self._schedule = config, ranks, schedule
        graph_of = services.graph_of or partial(LearnedGraph.open, config=config)
        self.graphs = [graph_of(address) for address in graphs_of(config)]
        if config.negatives.vectors:
            self.graphs[0].source.attach(view_of_run(Path(config.negatives.vectors), self.graphs[0].store))
        torch.manual_seed(stream(Purpose.NETWORK, config.train.seed).initial_seed())
        self.model = start_of(config, [graph.store.manifest for graph in self.graphs]).to(ranks.device)
        batches = FoundationBatches(self.graphs, config, ranks)
        self.steps_per_epoch, self.triples_per_epoch = batches.steps, batches.triples
        self._dense = DenseParameters(self.model, config.optimizer, ranks)
        self.loop = self.loop_kind(self.model, batches, self._dense, config, self._rate, ranks)

    def _rate(self, epoch: int, step: int) -> float:
        return self._schedule.factor(epoch + step / self.steps_per_epoch)

    def model_state(self) -> State:
        return State({}, {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}, 0)

    def state(self) -> State:
        dense = {f"dense_optimizer.{name}": tensor for name, tensor in self._dense.state().items()}
        return State({}, self.model_state().replicated | dense, 0)

    def telemetry(self) -> Record:
        return {}

    def validate(self) -> dict[str, float] | None:
        """Means over the graphs that have something to validate on."""
        found = [
            ranking_metrics(self._rank(graph, *graph.validation))
            for graph in self.graphs
            if graph.validation is not None
        ]
        return over_graphs(found) if found else None

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """Splits with means over graphs as ``metrics``, and those of each graph as ``by_graph``."""
        found: dict[str, dict[str, Any]] = {}
        for split in ("valid", "test"):
            graphs = [graph for graph in self.graphs if graph.store.manifest.triples.get(split)]
            if not graphs:
                continue
            each = [self._metrics(graph, split) for graph in graphs]
            by_graph = [{"graph": graph.name, **metrics} for graph, metrics in zip(graphs, each, strict=True)]
            found[split] = {"metrics": over_graphs(each), "by_graph": by_graph}
        return found

    def _metrics(self, graph: LearnedGraph, split: str) -> dict[str, float]:
        some = self._config.evaluate.max_final_triples, self._config.train.seed
        found: dict[str, float] = evaluate_ranks(graph.store, split, partial(self._rank, graph), *some)["metrics"]
        return found

    def _rank(self, graph: LearnedGraph, triples: np.ndarray, known: KnownAnswers) -> Any:
        reasoner = Reasoner(self.model, graph.facts, graph.surroundings)
        relations, batch_size = graph.store.num_relations, self._config.evaluate.batch_size
        return rank_by_scores(reasoner.scores, triples, known, relations, batch_size=batch_size, ranks=self._ranks)

    def leave_model(self, folder: Path) -> None:
        save_model(self.model, folder / MODEL_FOLDER)

    def describe(self) -> Record:
        counts = [graph.store.manifest for graph in self.graphs]
        splits = ("train", "valid", "test")
        return {
            "entities": sum(each.entities for each in counts),
            "relations": sum(each.relations for each in counts),
            "triples": {split: sum(each.triples.get(split, 0) for each in counts) for split in splits},
            "graphs": [
                {"graph": graph.name, "entities": n.entities, "relations": n.relations, "facts": n.triples["train"]}
                for graph, n in zip(self.graphs, counts, strict=True)
            ],
        }


def over_graphs(metrics: Sequence[Metrics]) -> Metrics:
    """Means of the metrics of graphs, whatever their sizes; of ``queries`` the sum."""
    means = {name: float(np.mean([each[name] for each in metrics])) for name in metrics[0]}
    return {**means, "queries": sum(each["queries"] for each in metrics)}


def made_graph(address: str, config: RunConfig) -> LearnedGraph:
    """A graph with all that training reads of it made; raises as ``LearnedGraph.open`` and ``start_of``."""
    graph = LearnedGraph.open(address, config)
    graph.make_all(start_of(config, [graph.store.manifest]))
    return graph


def start_of(config: RunConfig, sizes: Sequence[Manifest]) -> FoundationModel:
    """The model that training begins with, on graphs of these sizes.

    Raises:
        ConfigError: wrong options, or a model to go on from that is another one; several graphs for a model whose
            relations are those of one.
        ModelFileError: there is none to go on from.
    """
    name, options = config.model.name, dict(config.model.options)
    if MODELS[name].knows_relations:
        if len(sizes) > 1:
            raise ConfigError(f"data.graphs: {name} has vectors for the relations of one graph; {len(sizes)} are given")
        options["relations"] = sizes[0].relations
        if MODELS[name].knows_entities:
            options["entities"] = sizes[0].entities
    if not config.model.start:
        return make_model(name, options)
    model = load_model(Path(config.model.start))
    if model.name != config.model.name:
        raise ConfigError(f"model.start: {config.model.start} is {model.name}, and model.name is {config.model.name}")
    return model
