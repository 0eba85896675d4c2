"""Training of foundation models: at each step every rank draws a graph, and trains on a batch of its facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from distkg.config import ConfigError, RunConfig
from distkg.data.storage.working_copy import folder_at
from distkg.data.store.identity import StoreIdentity
from distkg.data.store.known_answers import KnownAnswers
from distkg.embedding.load_run import view_of_run
from distkg.evaluation.filtered_triples import FilteredTriples
from distkg.evaluation.metrics import Metrics, evaluate_ranks, ranking_metrics
from distkg.evaluation.ranking import Ranking, rank_by_scores
from distkg.foundation.batches import FoundationBatches
from distkg.foundation.graph_scorer import GraphScorer
from distkg.foundation.graphs.training_graphs import LearnedGraph, graphs_of
from distkg.foundation.initial_model import check_settings, initial_model
from distkg.foundation.loop import FoundationLoop
from distkg.foundation.mining import encoder_parameters, weights_of
from distkg.foundation.model_files import MODEL_FOLDER, save_model
from distkg.foundation.telemetry import HardnessTelemetry
from distkg.negatives import TrainingProgress
from distkg.randomness import Purpose, stream
from distkg.sharding.checkpoint.checkpoint import State
from distkg.sharding.ranks import Ranks
from distkg.sharding.replicated_parameters import ReplicatedParameters
from distkg.sharding.row_storage import DeviceMemory, RowStorage
from distkg.training.learner import Segment
from distkg.training.provenance import Provenance, provenance_of
from distkg.training.run_dir import Record
from distkg.training.schedule import Schedule
from distkg.training.services import LOCAL_SERVICES, Services


class FoundationLearner:
    """``Learner`` of a foundation model and its training graphs."""

    loop_kind: ClassVar[type[FoundationLoop]] = FoundationLoop

    def __init__(
        self, config: RunConfig, ranks: Ranks, schedule: Schedule, services: Services = LOCAL_SERVICES
    ) -> None:
        check_settings(config)
        self._config, self._ranks, self._schedule, self._stop = config, ranks, schedule, services.stop
        graph_of = services.graph_of or partial(LearnedGraph.open, config=config)
        self.graphs = [graph_of(address) for address in graphs_of(config)]
        if config.negatives.vectors:
            with folder_at(config.negatives.vectors) as run:
                self.graphs[0].source.attach(view_of_run(run, self.graphs[0].store))
        torch.manual_seed(stream(Purpose.NETWORK, config.train.seed).initial_seed())
        self.model = initial_model(config, [graph.store.manifest for graph in self.graphs]).to(ranks.device)
        if self.model.knows_relations:
            self.model.trained_on = StoreIdentity.of(self.graphs[0].store)
        batches = FoundationBatches(self.graphs, config, ranks)
        self.steps_per_epoch, self.triples_per_epoch = batches.steps, batches.triples
        self.items_per_epoch = 0
        self._dense = ReplicatedParameters(self.model, config.optimizer, ranks)
        before_step = self._connect(services)
        sources = [graph.source for graph in self.graphs if graph.source.hard_first]
        self._telemetry = HardnessTelemetry(sources, config.negatives.count, ranks) if sources else None
        self.loop = self.loop_kind(
            self.model,
            batches,
            self._dense,
            config,
            self._rate,
            ranks,
            time_gone=lambda: schedule.time_gone,
            telemetry=self._telemetry,
            before_step=before_step,
        )

    def continue_epoch(self, epoch: int, first: int, segments: Sequence[Segment]) -> None:
        """Do nothing: every step draws facts at random, as many on any number of workers."""

    def provenance(self) -> Provenance:
        stores = [graph.store for graph in self.graphs]
        return provenance_of(self._config, stores, self.model.files_beside_manifest)

    def _connect(self, services: Services) -> Callable[[TrainingProgress], None]:
        """Connect negative sources to the actors that compare relations, if the run has actors.

        Returns:
            Function that requests and receives the tables of all graphs before a step.
        """
        pool = self._config.negatives.pool
        if not pool.actors:
            return lambda moment: None
        if services.pool_of is None:
            raise ConfigError(
                "negatives.pool.actors needs Ray actors, but this training runs without Ray: launch it with "
                "`distkg train` or launch_training, or set negatives.pool.actors: 0."
            )
        encoder = encoder_parameters(self.model, self.graphs[0])
        for address, graph in zip(graphs_of(self._config), self.graphs, strict=True):
            graph.source.connect(services.pool_of(address), pool, lambda: weights_of(encoder))

        def advance_all(moment: TrainingProgress) -> None:
            for graph in self.graphs:
                graph.source.request(moment)
            for graph in self.graphs:  # after all requests, because with negatives.pool.sync this waits for the replies
                graph.source.advance(moment)

        return advance_all

    def _rate(self, epoch: int, step: int) -> float:
        return self._schedule.factor(epoch + step / self.steps_per_epoch)

    def model_state(self) -> State:
        return State({}, {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}, 0)

    def storage(self) -> RowStorage:
        return DeviceMemory(self._ranks.device)

    def state(self) -> State:
        dense = {f"dense_optimizer.{name}": tensor for name, tensor in self._dense.state().items()}
        return State({}, self.model_state().replicated | dense, 0)

    def telemetry(self) -> Record:
        return {} if self._telemetry is None else {"negatives": self._telemetry.report()}

    def validate(self) -> dict[str, float] | None:
        """Return the mean validation metrics of the graphs with validation triples; None if there are none."""
        metrics = [
            ranking_metrics(self._ranking(graph, graph.validation))
            for graph in self.graphs
            if graph.validation is not None
        ]
        return over_graphs(metrics) if metrics else None

    def _ranking(self, graph: LearnedGraph, triples: FilteredTriples) -> Ranking:
        return triples.rank(partial(self._rank, graph))

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """Return for each split the mean over graphs as ``metrics``, and those of each graph as ``by_graph``."""
        results: dict[str, dict[str, Any]] = {}
        for split in ("valid", "test"):
            graphs = [graph for graph in self.graphs if graph.store.manifest.triples.get(split)]
            if not graphs:
                continue
            each = [self._metrics(graph, split) for graph in graphs]
            by_graph = [{"graph": graph.name, **metrics} for graph, metrics in zip(graphs, each, strict=True)]
            results[split] = {"metrics": over_graphs(each), "by_graph": by_graph}
        return results

    def _metrics(self, graph: LearnedGraph, split: str) -> dict[str, float]:
        subset = self._config.evaluate.max_final_triples, self._config.train.seed
        metrics: dict[str, float] = evaluate_ranks(graph.store, split, partial(self._rank, graph), *subset)["metrics"]
        return metrics

    def _rank(self, graph: LearnedGraph, triples: np.ndarray, known: KnownAnswers) -> Ranking:
        scorer = GraphScorer(self.model, graph.facts, graph.surroundings)
        relations, batch_size = graph.store.num_relations, self._config.evaluate.batch_size
        return rank_by_scores(
            scorer.scores,
            triples,
            known,
            relations,
            batch_size=batch_size,
            ranks=self._ranks,
            hurries=self._stop.hurries,
        )

    def export_model(self, folder: Path) -> None:
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
    """Return the unweighted means of the metrics of graphs, and the sum of ``queries``."""
    means = {name: float(np.mean([each[name] for each in metrics])) for name in metrics[0]}
    return {**means, "queries": sum(each["queries"] for each in metrics)}
