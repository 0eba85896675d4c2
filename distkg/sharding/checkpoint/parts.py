"""Checkpoint written part by part by one process, which holds the rows of one file at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue
from torch import Tensor

from distkg.sharding.checkpoint.manifest import CheckpointManifest, TensorEntry
from distkg.sharding.checkpoint.storage import storage_of
from distkg.sharding.shards import Shards

BYTES_OF_FILE = 512 << 20
"""Rows of a file, at most, unless a single row is larger."""


def write_in_parts(
    folder: Path,
    rows: int,
    part: Callable[[int, int], dict[str, Tensor]],
    replicated: Mapping[str, Tensor],
    progress: Mapping[str, JsonValue],
    file_bytes: int = BYTES_OF_FILE,
) -> None:
    """Write and commit a checkpoint, which any number of ranks loads.

    Args:
        folder: new folder, or the copy of one in an object store; the checkpoint exists once its manifest does.
        rows: number of rows of the sharded tensors.
        part: function (low, high) → rows low … high - 1 of each sharded tensor.
        replicated: tensors that every rank holds.
        progress: JSON values.
        file_bytes: most bytes of the rows of a file.
    """
    none = part(0, 0)
    width = sum(tensor.element_size() * tensor.shape[1:].numel() for tensor in none.values())
    # Shards of equal sizes, none of them empty, so that every rank of a reader finds rows in few files.
    files = Shards(rows, max(1, -(-rows * width // file_bytes)))
    count = max(1, -(-rows // files.per_rank)) if rows else 1
    entries = {
        name: TensorEntry(dtype=_name(tensor), shape=[rows, *tensor.shape[1:]], sharded=True)
        for name, tensor in none.items()
    }
    entries |= {
        name: TensorEntry(dtype=_name(tensor), shape=[*tensor.shape], sharded=False)
        for name, tensor in replicated.items()
    }
    storage = storage_of(folder.parent)
    attempt, written = storage.prepare(folder.name), []
    for index in range(count):
        low, high = files.range(index)
        tensors = part(low, high) | (dict(replicated) if index == 0 else {})
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        written.append(storage.write_own(folder.name, attempt, contiguous, (low, high), index, count))
    manifest = CheckpointManifest(
        serial=1,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        best=False,
        world_size=count,
        rows=rows,
        progress=json.loads(json.dumps(dict(progress), allow_nan=False)),
        tensors=entries,
        files=written,
    )
    storage.commit(folder.name, attempt, manifest)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
