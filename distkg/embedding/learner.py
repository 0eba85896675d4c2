"""Learner of the embeddings of one graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distkg.config import RunConfig
from distkg.data.store.graph_store import Store
from distkg.embedding.build import build_objective
from distkg.embedding.composed.table import composed_table
from distkg.embedding.growth.settings import frozen_counts
from distkg.embedding.loop import Loop
from distkg.embedding.model import Model, TrainingModel, rows_by_relation, storage_of
from distkg.embedding.telemetry import negative_telemetry
from distkg.evaluation.filtered_triples import FilteredTriples
from distkg.evaluation.metrics import evaluate_triples, ranking_metrics, subsample
from distkg.evaluation.ranking import rank_answers
from distkg.sharding.checkpoint.checkpoint import State
from distkg.sharding.ranks import Ranks
from distkg.sharding.replicated_parameters import ReplicatedParameters
from distkg.sharding.row_storage import RowStorage
from distkg.sharding.table import ShardedTable
from distkg.training.learner import Segment
from distkg.training.provenance import Provenance, provenance_of
from distkg.training.run_dir import Record
from distkg.training.schedule import Schedule
from distkg.training.services import Services

ENTITIES = "entities"
"""Name of the entity table in checkpoints."""


class EmbeddingLearner:
    """``Learner`` of an embedding model: model, optimizers, batches and evaluation on one store's graph."""

    def __init__(self, config: RunConfig, ranks: Ranks, schedule: Schedule, services: Services) -> None:
        self._config, self._schedule, self._stop = config, schedule, services.stop
        self.store = Store.open(config.data.store)
        composed = None
        if config.model.entities == "nodepiece":
            composed = composed_table(config.model, self.store, ranks)
        self.model = TrainingModel(
            config,
            self.store.num_entities,
            self.store.num_relations,
            ranks,
            frozen_counts(config, self.store),
            composed,
        )
        batches, step = build_objective(config, self.store, self.model, services, lambda: schedule.time_gone)
        self._order = batches.order
        self.steps_per_epoch, self.triples_per_epoch = batches.steps, batches.triples
        self.items_per_epoch = batches.order.items
        self._negatives = negative_telemetry(batches, self.model)
        by_row = rows_by_relation(config)
        self._dense = ReplicatedParameters(self.model, config.optimizer, ranks, self.model.trained, by_row)
        self.loop = Loop(
            self.model,
            batches,
            step,
            self._dense,
            config.optimizer.learning_rate,
            self._rate,
            config.train.seed,
            overlap=config.train.overlap,
        )
        self._validation: FilteredTriples | None = None

    def continue_epoch(self, epoch: int, first: int, segments: Sequence[Segment]) -> None:
        self._order.continue_epoch(epoch, first, segments)

    def provenance(self) -> Provenance:
        return provenance_of(self._config, [self.store])

    def _rate(self, epoch: int, step: int) -> float:
        return self._schedule.factor(epoch + step / self.steps_per_epoch)

    def model_state(self) -> State:
        return model_state(self.model)

    def storage(self) -> RowStorage:
        return storage_of(self._config, self.model.ranks)

    def state(self) -> State:
        state = model_state(self.model)
        optimizer = self.model.entities.optimizer
        rows = {} if optimizer is None else optimizer.state  # composed rows have none
        sharded = {f"optimizer.{name}": tensor for name, tensor in rows.items()}
        dense = {f"dense_optimizer.{name}": tensor for name, tensor in self._dense.state().items()}
        return State(state.sharded | sharded, state.replicated | dense, state.rows, state.on_disk)

    def telemetry(self) -> Record:
        return {} if self._negatives is None else {"negatives": self._negatives.report()}

    def validate(self) -> dict[str, float] | None:
        if not self.store.manifest.triples.get("valid"):
            return None
        if self._validation is None:
            triples = subsample(
                self.store.triples("valid"), self._config.evaluate.max_valid_triples, self._config.train.seed
            )
            self._validation = FilteredTriples(self.store, triples, self.model.ranks, sharded=True)
        self.model.average_buffers()
        settings = self._config.evaluate
        rank = partial(
            rank_answers,
            self.model,
            batch_size=settings.batch_size,
            memory_mb=settings.memory_mb,
            hurries=self._stop.hurries,
        )
        return ranking_metrics(self._validation.rank(rank))

    def evaluate(self) -> dict[str, dict[str, Any]]:
        settings, seed = self._config.evaluate, self._config.train.seed
        sizes = {"batch_size": settings.batch_size, "memory_mb": settings.memory_mb}
        return {
            split: evaluate_triples(self.model, self.store, split, settings.max_final_triples, seed, **sizes)
            for split in ("valid", "test")
            if self.store.manifest.triples.get(split)
        }

    def export_model(self, folder: Path) -> None:
        """Do nothing: the rows may be many and are in the checkpoints; `distkg export` writes them."""

    def describe(self) -> Record:
        return describe_graph(self.store, self.model)


def model_state(model: Model) -> State:
    """Return the tensors of a model, without those of the optimizer; rows that lie in a checkpoint are left out."""
    replicated = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if not isinstance(model.entities, ShardedTable):
        return State({}, replicated, model.num_entities)
    return State({ENTITIES: model.entities.local}, replicated, model.num_entities, model.entities.storage.on_disk)


def describe_graph(store: Store, model: TrainingModel) -> Record:
    """Return sizes and balance of the graph, for the report."""
    degrees = store.degrees()
    edges = np.unique(np.geomspace(1, max(2, int(degrees.max()) + 1), 24).astype(np.int64))
    counts, _ = np.histogram(degrees, edges)
    shards = model.entities.shards
    return {
        "entities": store.num_entities,
        "relations": store.num_relations,
        "triples": dict(store.manifest.triples),
        "degree_histogram": [[int(low), int(count)] for low, count in zip(edges[:-1], counts, strict=True)],
        "partitions": np.diff(store.manifest.partition_offsets).tolist(),
        "shards": [shards.count(rank) for rank in range(shards.size)],
    }
