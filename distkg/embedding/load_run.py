"""Loading of trained embedding models, for use or as a view for the negative sources of another training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from distkg.config import ConfigError, RunConfig, family_of
from distkg.data.store.graph_store import Store
from distkg.data.store.identity import Scope, StoreIdentity, check_store
from distkg.embedding.composed.table import composed_table
from distkg.embedding.learner import ENTITIES, model_state
from distkg.embedding.model import EntityTable, Model
from distkg.embedding.scorers import make_scorer
from distkg.embedding.sharded_model_view import ShardedModelView
from distkg.printable import printable_lines
from distkg.redaction import redact
from distkg.sharding.checkpoint.checkpoint import CheckpointError, Checkpoints
from distkg.sharding.ranks import Ranks
from distkg.sharding.table import ShardedTable
from distkg.training.provenance import open_store_of_run, provenance_of_run, read_provenance, recorded_in
from distkg.training.run_dir import RunFolder


def warn_on_stderr(text: str) -> None:
    """Print a message about skipped checkpoints."""
    print(printable_lines(redact(text)), file=sys.stderr, flush=True)


def load_run(
    run: Path,
    ranks: Ranks,
    store: str = "",
    scope: Scope = "graph",
    *,
    held: bool = False,
    notice: Callable[[str], None] = warn_on_stderr,
) -> tuple[Model, Store, RunConfig]:
    """Load the best model of a run (the newest if none was validated), its store and configuration; collective.

    Args:
        store: address of the run's store, if it has moved; default: the one in the configuration.
        scope: files of the store that must equal those that the run was trained on.
        held: hold this rank's rows in memory, for many reads of few rows; else they stay in the checkpoint's files.
        notice: receives messages about skipped damaged checkpoints, on the first rank.

    Raises:
        ConfigError: the folder holds no run of embeddings.
        CheckpointError: the run has no checkpoint, or all are damaged.
        StoreError: the run's store cannot be opened.
        StoreMismatchError: the store is not the one that the model was trained on; names the file that differs.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    if family_of(config.model.name) != "embedding":
        raise ConfigError(
            f"{run} is a run of {config.model.name}, which has no entity vectors; name a run of an embedding model"
        )
    checkpoints, name, opened = open_best(run, config, ranks, store, scope, notice)
    shape, dtype = (opened.num_entities, make_scorer(config.model).entity_width), getattr(torch, config.model.dtype)
    table: EntityTable
    if config.model.entities == "nodepiece":
        table = composed_table(config.model, opened, ranks)
    elif held:
        table = ShardedTable(*shape, None, ranks, dtype)
    else:
        table = checkpoints.open_table(name, ENTITIES, shape, dtype)
    model = Model(config, opened.num_entities, opened.num_relations, ranks, table)
    checkpoints.load(name, model_state(model))
    checkpoints.drop_fetched()
    manifest = checkpoints.describe(name)
    if ranks.first and not manifest.best and manifest.progress.get("best_mrr", -1.0) != -1.0:
        notice(f"{folder.checkpoints}: the checkpoint of the best model is lost; {name}, the newest, is used")
    return model, opened, config


def open_best(
    run: Path, config: RunConfig, ranks: Ranks, store: str, scope: Scope, notice: Callable[[str], None]
) -> tuple[Checkpoints, str, Store]:
    """Open the checkpoints of a run of embeddings and its store; return the name of the best checkpoint too, of the
    newest if none was validated. Arguments and errors are those of ``load_run``; collective."""
    folder = RunFolder(run)
    checkpoints = Checkpoints(folder.checkpoints, ranks, config.checkpoint.keep, notice=notice)
    name = checkpoints.best_or_newest()
    if name is None:
        raise CheckpointError(f"{folder.checkpoints} holds no checkpoint: train the run first")
    progress = checkpoints.describe(name).progress
    record = recorded_in(progress, f"the manifest of {folder.checkpoints / name}") or read_provenance(run)
    return checkpoints, name, open_store_of_run(run, config, record, scope, store)


def row_of_run(run: Path) -> tuple[int, int]:
    """Return the number of values and of bytes of an entity's row in a run of embeddings.

    Raises:
        ConfigError: the folder holds no run.
    """
    config = RunFolder(run).read_config()
    with torch.device("meta"):
        width = make_scorer(config.model).entity_width
    return width, width * getattr(torch, config.model.dtype).itemsize


def view_of_run(run: Path, store: Store) -> ShardedModelView:
    """Open the trained model of a run as a view with the ids of a store.

    Raises:
        ConfigError, CheckpointError: as ``load_run``.
        StoreMismatchError: the run was trained on another store; names the file that differs.
    """
    # A run that recorded its store is checked against this one, wherever its own store is now.
    recorded = provenance_of_run(run) is not None
    model, own, _ = load_run(run, Ranks.single(), store.address if recorded else "", "labels", held=True)
    check_store(StoreIdentity.of(own), store, "labels", f"run {run}")
    return ShardedModelView(model)
