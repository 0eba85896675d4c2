"""Embedding models that runs have trained: loaded, or looked at by negative sources of another training."""

from __future__ import annotations

from pathlib import Path

from distkg.config import ConfigError, RunConfig
from distkg.data.store import Store
from distkg.sharding.ranks import Ranks
from distkg.training.checkpoint import CheckpointError, Checkpoints
from distkg.training.embedding import model_state
from distkg.training.live import ModelView
from distkg.training.model import Model
from distkg.training.record import RunFolder


def load_run(run: Path, ranks: Ranks) -> tuple[Model, Store, RunConfig]:
    """The best model of a run (the newest where none was validated), its store and configuration; collective.

    Raises:
        ConfigError: the folder holds no run.
        CheckpointError: it holds no valid checkpoint.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    store = Store.open(config.data.store)
    model = Model(config, store.num_entities, store.num_relations, ranks, train=False)
    checkpoints = Checkpoints(folder.checkpoints, ranks, config.checkpoint.keep)
    name = checkpoints.best() or checkpoints.newest()
    if name is None:
        raise CheckpointError(f"{folder.checkpoints} holds no valid checkpoint: train the run first")
    checkpoints.load(name, model_state(model))
    return model, store, config


def view_of_run(run: Path, store: Store) -> ModelView:
    """The trained model of a run folder, to be looked at with the ids of a store.

    Raises:
        ConfigError: the run was trained on another graph.
    """
    model, own, _ = load_run(run, Ranks.single())
    if own.manifest.files["entities.parquet"] != store.manifest.files["entities.parquet"]:
        raise ConfigError(
            f"{run} was trained on {own.address}, whose entities are others than those of {store.address}"
        )
    return ModelView(model)
