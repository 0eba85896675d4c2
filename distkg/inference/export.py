"""Export of a model as plain arrays and tables that can be read without distkg: see docs/export.md.

Entity rows are streamed by range, from a sharded table or from a checkpoint, so the whole table is never in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from distkg.config import ModelConfig
from distkg.data.storage.atomic_file import replace_text, replaced_file
from distkg.data.storage.local_path import local_path
from distkg.data.storage.location import make_folder
from distkg.data.storage.row_files import rows_header
from distkg.data.storage.tensor_files import write_tensors
from distkg.data.store.graph_store import Store
from distkg.embedding.model import Model
from distkg.embedding.scorers.base import Scorer
from distkg.evaluation.score_blocks import evaluating
from distkg.inference.vector_index import INDEX, write_index
from distkg.redaction import is_remote
from distkg.training.run_dir import versions

ENTITIES = "entities.safetensors"
RELATIONS = "relations.safetensors"
FORMAT_VERSION = 1

_ROWS_AT_ONCE = 1 << 15

RowRange = tuple[int, Tensor]


def export_model(model: Model, store: Store, config: ModelConfig, folder: str | Path, *, index: bool = False) -> None:
    """Export a model whose rows are sharded over ranks. Collective; the first rank writes.

    Args:
        model: model of the store's graph.
        config: the ``model`` section with which it was built.
        folder: created if absent; files of an earlier export are replaced.
        index: also write an ANN index of the entities, ``index.faiss``.

    Raises:
        AnnError: with ``index``, FAISS does not support the scorer's similarity or is not installed.
    """
    ranges = gathered_rows(model)
    if not model.ranks.first:
        for _ in ranges:
            pass
        return
    with evaluating(model):
        export(folder, store, config, model.scorer, model.relations.detach(), ranges, index=index)


def gathered_rows(model: Model, rows_at_once: int = _ROWS_AT_ONCE) -> Iterator[RowRange]:
    """Yield the entity table by ascending ranges (first id, float32 [n, width]) on the first rank. Collective.

    Every rank must exhaust the iterator; ranks other than the first get empty ranges.
    """
    total = model.entities.shards.rows
    for low in range(0, total, rows_at_once):
        high = min(low + rows_at_once, total) if model.ranks.first else low
        ids = torch.arange(low, high, device=model.ranks.device)
        yield low, model.entities.gather(ids)


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
    """Export as ``export_model`` from row ranges of any origin, such as a checkpoint.

    Args:
        scorer: its parameters and buffers are written by name beside the relations.
        relations: float [2R or R, relation_width].
        entities: ranges (first id, float [n, entity_width]) that together hold each row once, in any order.
    """
    folder = local_path(folder, "export folder")
    make_folder(folder, private=is_remote(store.address))
    (folder / INDEX).unlink(missing_ok=True)
    write_rows(folder / ENTITIES, (store.num_entities, scorer.entity_width), entities)
    layers = {name: tensor.detach().cpu().contiguous() for name, tensor in scorer.state_dict().items()}
    write_tensors(folder / RELATIONS, {"vectors": relations.float().cpu().contiguous(), **layers})
    _write_labels(folder / "entities.parquet", store.entity_labels())
    _write_labels(folder / "relations.parquet", store.relation_labels())
    if index:
        write_index(folder / ENTITIES, scorer)
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


def _write_labels(path: Path, labels: pa.Array) -> None:
    ids = pa.array(np.arange(len(labels), dtype=np.int64))
    pq.write_table(pa.table({"id": ids, "label": labels}), path)
