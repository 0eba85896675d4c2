"""Export of a model as plain arrays and tables that can be read without distkg: see docs/export.md.

Entity rows are streamed by range, from a sharded table or from a checkpoint, so the whole table is never in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from distkg.config import ModelConfig
from distkg.data.storage.atomic_file import replace_text, replaced_file
from distkg.data.storage.file_changes import changed
from distkg.data.storage.local_path import local_path
from distkg.data.storage.location import make_folder
from distkg.data.storage.row_files import rows_header
from distkg.data.storage.tensor_files import write_tensors
from distkg.data.storage.working_copy import delete, flush
from distkg.data.store.graph_store import Store
from distkg.embedding.model import Model
from distkg.embedding.scorers.base import Scorer
from distkg.evaluation.score_blocks import evaluating
from distkg.inference.exported_rows import ENTITIES, EntityFile, entity_files, write_file_list
from distkg.inference.vector_index import INDEX, write_index
from distkg.kernels.nearest_neighbours import metric_of
from distkg.redaction import is_remote
from distkg.sharding.shards import Shards
from distkg.training.run_dir import versions

RELATIONS = "relations.safetensors"
FORMAT_VERSION = 1

_BYTES_AT_ONCE = 1 << 20  # of rows; an export takes no more memory than the ranking of a batch

RowRange = tuple[int, Tensor]


def export_model(model: Model, store: Store, config: ModelConfig, folder: str | Path, *, index: bool = False) -> None:
    """Export a model. Collective: each rank writes the rows of its range, and the first rank everything else.

    With one rank, the rows are in ``entities.safetensors``; with several, in a file of each rank, and
    ``entities.index.json`` lists the files.

    Args:
        model: model of the store's graph.
        config: the ``model`` section with which it was built.
        folder: created if absent, on storage that all ranks share; files of an earlier export are replaced.
        index: also write an ANN index of the entities, ``index.faiss``.

    Raises:
        AnnError: with ``index``, FAISS does not support the scorer's similarity or is not installed.
    """
    if index:
        metric_of(model.scorer.similarity)
    ranks, (low, high) = model.ranks, model.entities.shards.range(model.ranks.rank)
    folder = _made(folder, store)
    files = entity_files(model.entities.shards)
    with evaluating(model):
        ranges = ((first - low, rows) for first, rows in own_rows(model))
        write_rows(folder / files[ranks.rank].name, (high - low, model.entities.width), ranges)
        flush(folder)
        ranks.barrier()  # all rows are written
        if ranks.first:
            _finish(folder, store, config, model.scorer, model.relations.detach(), files, index)


def own_rows(model: Model, rows_at_once: int | None = None) -> Iterator[RowRange]:
    """Yield this rank's entity rows by ascending ranges (first id, float32 [n, width]); default: a few MiB at once."""
    low, high = model.entities.shards.range(model.ranks.rank)
    rows_at_once = rows_at_once or max(1, _BYTES_AT_ONCE // (4 * max(1, model.entities.width)))
    for first in range(low, high, rows_at_once):
        yield first, model.entities.rows(first, min(first + rows_at_once, high)).float()


def export(
    folder: str | Path,
    store: Store,
    config: ModelConfig,
    scorer: Scorer,
    relations: Tensor,
    entities: Iterable[RowRange],
    *,
    index: bool = False,
) -> None:
    """Export as ``export_model`` with one rank, from row ranges of any origin.

    Args:
        scorer: its parameters and buffers are written by name beside the relations.
        relations: float [2R or R, relation_width].
        entities: ranges (first id, float [n, entity_width]) that together hold each row once, in any order.
    """
    folder = _made(folder, store)
    write_rows(folder / ENTITIES, (store.num_entities, scorer.entity_width), entities)
    files = entity_files(Shards(store.num_entities, 1))
    _finish(folder, store, config, scorer, relations, files, index)


def _made(folder: str | Path, store: Store) -> Path:
    folder = local_path(folder, "export folder")
    make_folder(folder, private=is_remote(store.address))
    return folder


def _finish(
    folder: Path,
    store: Store,
    config: ModelConfig,
    scorer: Scorer,
    relations: Tensor,
    files: Sequence[EntityFile],
    index: bool,
) -> None:
    """Write what is beside the entity rows, ``model.json`` last, and remove files of an earlier export."""
    write_file_list(folder, files, scorer.entity_width)
    delete(folder / INDEX)
    layers = {name: tensor.detach().cpu().contiguous() for name, tensor in scorer.state_dict().items()}
    write_tensors(folder / RELATIONS, {"vectors": relations.float().cpu().contiguous(), **layers})
    changed(folder / RELATIONS)
    _write_labels(folder / "entities.parquet", store.iter_entity_labels())
    _write_labels(folder / "relations.parquet", [store.relation_labels()])
    if index:
        changed(write_index(folder, scorer))
    facts = describe(scorer, config, store.num_entities, store.num_relations)
    replace_text(folder / "model.json", json.dumps(facts, indent=2) + "\n")


def describe(scorer: Scorer, config: ModelConfig, num_entities: int, num_relations: int) -> dict[str, Any]:
    """Return the content of model.json: the scorer, its constants, shapes and versions."""
    return {
        "format_version": FORMAT_VERSION,
        "scorer": config.name,
        "similarity": scorer.similarity.name,
        "dim": config.dim,
        "inverse": config.inverse,
        "options": scorer.options.model_dump(),
        "num_entities": num_entities,
        "num_relations": num_relations,
        "entity_width": scorer.entity_width,
        "relation_width": scorer.relation_width,
        "trained_dtype": config.dtype,
        "versions": versions(),
    }


def write_rows(path: Path, shape: tuple[int, int], ranges: Iterable[RowRange]) -> None:
    """Write one float32 tensor ``vectors`` to a safetensors file from row ranges, in any order.

    The header is written first, then each range at its offset; the file gets its final name when it is complete.
    safetensors itself can only write tensors that are in memory.

    Raises:
        ValueError: the ranges do not hold every row once, or have another width.
    """
    rows, width = shape
    header = rows_header("vectors", "F32", rows, width)
    written = np.zeros(rows, np.bool_)
    with replaced_file(path) as unfinished, unfinished.open("wb") as file:
        file.write(header)
        for low, values in ranges:
            high = low + len(values)
            if values.shape[1:] != (width,) or not 0 <= low <= high <= rows or written[low:high].any():
                raise ValueError(
                    f"{path}: rows {low} to {high - 1} of shape {list(values.shape)} do not fit a table of "
                    f"{rows} × {width}, or were given before"
                )
            file.seek(len(header) + 4 * width * low)
            file.write(values.float().cpu().contiguous().numpy().data)
            written[low:high] = True
        if not written.all():
            raise ValueError(f"{path}: row {int(np.argmin(written))} was never given; the table has {rows} rows")


def _write_labels(path: Path, parts: Iterable[pa.Array]) -> None:
    """Write labels that come part by part, in the order of ids."""
    first = 0
    with pq.ParquetWriter(path, pa.schema({"id": pa.int64(), "label": pa.utf8()})) as writer:
        for labels in parts:
            ids = pa.array(np.arange(first, first + len(labels), dtype=np.int64))
            writer.write_table(pa.table({"id": ids, "label": labels}))
            first += len(labels)
    changed(path)
