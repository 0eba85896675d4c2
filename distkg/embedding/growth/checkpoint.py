"""First checkpoint of a run on a grown graph, written from a checkpoint of the old one without holding the table."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distkg.config import ConfigError, RunConfig
from distkg.data.store.graph_store import Store
from distkg.data.store.manifest import Grown
from distkg.embedding.growth.new_rows import GrownTable, RowMaker
from distkg.embedding.growth.settings import check_growth
from distkg.embedding.learner import ENTITIES
from distkg.embedding.load_run import open_best, warn_on_stderr
from distkg.embedding.model import BY_RELATION, Model
from distkg.sharding.checkpoint.checkpoint import CheckpointError, CheckpointManifest, Checkpoints
from distkg.sharding.checkpoint.files import dtype_of
from distkg.sharding.checkpoint.parts import write_in_parts
from distkg.sharding.ranks import Ranks
from distkg.sharding.table import ShardedTable
from distkg.training.family import Extensible, FirstRows
from distkg.training.run_dir import RunFolder
from distkg.training.weight_average import is_other

MODEL, DENSE_OPTIMIZER = "model.", "dense_optimizer."


def open_to_extend(run: Path, store: str) -> Extensible:
    """Open the best checkpoint of a run of embeddings to extend its graph; see ``Family.open_to_extend``."""
    folder = RunFolder(run)
    config = folder.read_config()
    if config.model.entities == "nodepiece":
        raise ConfigError(
            f"{run} composes its entity vectors (model.entities: nodepiece), whose anchors and tokens belong to its "
            "graph. Extend a run with model.entities: table, or train anew on the grown graph"
        )
    checkpoints, name, opened = open_best(run, config, Ranks.single(), store, "graph", warn_on_stderr)
    write = partial(write_grown_checkpoint, checkpoints, name)
    return Extensible(opened, config, folder.checkpoints / name, check_growth, write)


Read = Callable[[str], Tensor]
"""Function that reads a replicated tensor of the old checkpoint."""


def write_grown_checkpoint(
    checkpoints: Checkpoints,
    name: str,
    store: Store,
    config: RunConfig,
    first_rows: FirstRows,
    folder: Path,
    progress: Mapping[str, Any],
) -> int:
    """Write a checkpoint with the tensors of an old one at the old ids, and rows for new entities and relations.

    Rows of new relations, and the first rows of new entities without usable facts, are those of a new run. Optimizer
    state of old rows is kept, that of new ones is zero. Memory holds a file's part of the rows at a time.

    Args:
        checkpoints, name: checkpoint of the old graph.
        store: grown store.
        config: configuration of the new run.
        first_rows: rule of the first rows of new entities.
        folder: new folder of the checkpoint.
        progress: progress of the new run, for the manifest.

    Returns:
        The number of new entities whose rows are made from their neighbours.

    Raises:
        CheckpointError: the old checkpoint does not fit the configuration, or is damaged.
    """
    manifest, grown = checkpoints.describe(name), store.manifest.grown
    assert grown is not None, "the store was made by extend_store"

    # The model's own table is not read: an empty one stands for it.
    ranks = Ranks.single()
    model = Model(config, store.num_entities, store.num_relations, ranks, ShardedTable(0, 1, None, ranks))
    replicated = _grown_replicated(
        model, grown, manifest, partial(checkpoints.read_replicated, name), f"checkpoint {name}"
    )
    model.load_state_dict({tensor: replicated[MODEL + tensor] for tensor in model.state_dict()})
    shape, dtype = (grown.entities, model.scorer.entity_width), getattr(torch, config.model.dtype)
    old = checkpoints.open_table(name, ENTITIES, shape, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".rows-") as file:
        table = GrownTable(old, grown, store.num_entities, Path(file.name))
        made = RowMaker(model, table, store, grown, config.train.seed, config.evaluate.batch_size).fill(first_rows)

        def part(low: int, high: int) -> dict[str, Tensor]:
            return {
                tensor: _rows(checkpoints, name, manifest, tensor, grown.entities, low, high, table.new)
                for tensor, entry in manifest.tensors.items()
                if entry.sharded and not is_other(tensor)
            }

        write_in_parts(folder, store.num_entities, part, replicated, progress)
    return made


def _rows(
    checkpoints: Checkpoints,
    name: str,
    manifest: CheckpointManifest,
    tensor: str,
    entities: int,
    low: int,
    high: int,
    new: Tensor,
) -> Tensor:
    """Return rows low … high - 1 of a sharded tensor of the grown checkpoint."""
    entry = manifest.tensors[tensor]
    rows = torch.zeros(high - low, *entry.shape[1:], dtype=dtype_of(entry))
    middle = min(max(entities, low), high)
    if low < middle:
        rows[: middle - low] = checkpoints.read_rows(name, tensor, low, middle)
    if tensor == ENTITIES and middle < high:
        rows[middle - low :] = new[middle - entities : high - entities]
    return rows


def _grown_replicated(
    model: Model, grown: Grown, manifest: CheckpointManifest, read: Read, shown: str
) -> dict[str, Tensor]:
    """Return the replicated tensors of the grown checkpoint; values of new relations are those of ``model``."""
    tensors = {}
    for name, value in model.state_dict().items():
        tensors[MODEL + name] = _with_new_relations(value, read, manifest, MODEL + name, model, grown, shown)
    replicated = {name for name, entry in manifest.tensors.items() if not entry.sharded and not is_other(name)}
    for name in sorted(replicated - tensors.keys()):
        if not name.startswith(DENSE_OPTIMIZER):
            raise CheckpointError(f"{shown} holds {name}, which the model of this run does not have")
        tensors[name] = _with_new_state(read(name), model, grown, f"{name} of {shown}")
    return tensors


def _with_new_relations(
    value: Tensor, read: Read, manifest: CheckpointManifest, name: str, model: Model, grown: Grown, shown: str
) -> Tensor:
    old = _old_shape(name.removeprefix(MODEL), value, model, grown)
    entry = manifest.tensors.get(name)
    if entry is None or entry.shape != old or entry.sharded or dtype_of(entry) != value.dtype:
        raise CheckpointError(f"{name} is {entry or 'missing'} in {shown}, and {old} in the model of this run")
    if old == list(value.shape):
        return read(name)
    out, trained = value.detach().clone(), read(name)
    for place, source in _relation_places(model, grown):
        out[place] = trained[source]
    return out


def _with_new_state(state: Tensor, model: Model, grown: Grown, shown: str) -> Tensor:
    """Return the state of the optimizer of replicated parameters, one row [1, n], with zeros for new relations."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    old = [_old_shape(name, value, model, grown) for name, value in named]
    sizes = [torch.Size(shape).numel() for shape in old]
    if state.shape == (1, 1) and sum(sizes) != 1:
        return state  # the number of steps
    if state.shape != (1, sum(sizes)):
        raise CheckpointError(f"{shown} has {state.shape[-1]} values, and the model has {sum(sizes)} parameters")
    parts = []
    for (_, value), shape, part in zip(named, old, state[0].split(sizes), strict=True):
        out = part.view(shape)
        if list(value.shape) != shape:
            trained, out = out, torch.zeros(value.shape)
            for place, source in _relation_places(model, grown):
                out[place] = trained[source]
        parts.append(out.flatten())
    return torch.cat(parts)[None]


def _old_shape(name: str, value: Tensor, model: Model, grown: Grown) -> list[int]:
    if name not in BY_RELATION:
        return list(value.shape)
    return [grown.relations * (1 if model.tied else 2), *value.shape[1:]]


def _relation_places(model: Model, grown: Grown) -> Iterator[tuple[slice, slice]]:
    """Yield the rows of old relations, and of their inverses, in the grown and in the old parameters."""
    yield slice(0, grown.relations), slice(0, grown.relations)
    if not model.tied:
        start = model.num_relations
        yield slice(start, start + grown.relations), slice(grown.relations, 2 * grown.relations)
