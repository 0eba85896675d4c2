"""Manifest of a checkpoint: the file ``manifest.json`` of its folder, written last, with the size and SHA-256 of all
others.

Read without torch, for commands that only look at runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from distkg.strict_json import JsonError, read_json

FORMAT = 1
MANIFEST = "manifest.json"
UNNAMED = f"{MANIFEST}.part"
"""Name of a manifest until all other files of its checkpoint are on disk."""
ROWS_FILES = "rank-*-of-*.safetensors"
ATTEMPTS = "attempt-????????"

MAX_DIMENSIONS = 64  # limit of torch
_DIGEST = "sha256"
_ATTEMPT = r"attempt-[0-9a-f]{8}"
_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Allowed data types: names of torch, and bytes of a value."""


class CheckpointError(ValueError):
    """A checkpoint cannot be written, trusted or read; the message says which, why and what to do."""


class LaterFormatError(CheckpointError):
    """The checkpoint was written by a later distkg."""


def _known_dtype(name: str) -> str:
    if name not in _BYTES:
        raise ValueError(f"not a data type of checkpoints; known are {', '.join(_BYTES)}")
    return name


def _plain_name(name: str) -> str:
    if not name.isprintable() or not 0 < len(name) <= 1000:
        raise ValueError("a tensor's name has 1 to 1000 printable characters")
    return name


Size = Annotated[int, Field(ge=0, lt=1 << 63)]
TensorName = Annotated[str, AfterValidator(_plain_name)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TensorEntry(_Entry):
    """Tensor of a checkpoint, with its global shape."""

    dtype: Annotated[str, AfterValidator(_known_dtype)] = Field(
        description="Name of the torch dtype: float32, bfloat16, …"
    )
    shape: list[Size] = Field(max_length=MAX_DIMENSIONS)
    sharded: bool = Field(
        description="True if the rows are spread over the files; False if the tensor is whole in the first file."
    )

    @property
    def bytes(self) -> int:
        """Size of the tensor."""
        return math.prod(self.shape) * _BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{'sharded' if self.sharded else 'replicated'} {self.dtype} {self.shape}"


class ShardFile(_Entry):
    """File of one rank."""

    name: str = Field(
        pattern=rf"^({_ATTEMPT}/)?rank-[0-9]{{5,}}-of-[0-9]{{5,}}\.safetensors$",
        max_length=80,
        description="Name in the folder of the checkpoint; in an object store, below that of the attempt to write it.",
    )
    low: Size = Field(description="First row of the sharded tensors in the file.")
    high: Size = Field(description="One past the last row.")
    bytes: Size
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class CheckpointManifest(_Entry):
    """Manifest of a checkpoint.

    Attributes:
        serial: counter of the checkpoints of a folder; the newest has the highest, independent of clocks.
        created: time of writing, ISO 8601, UTC.
    """

    format: int = FORMAT
    serial: Size
    created: str = Field(max_length=64)
    best: bool
    world_size: int = Field(ge=1)
    rows: Size
    progress: dict[str, JsonValue]
    tensors: dict[TensorName, TensorEntry]
    files: list[ShardFile]

    def pieces(self, tensor: str) -> list[tuple[str, int, int]]:
        """Return the files that hold a tensor, each with its first row and one past its last."""
        entry = self.tensors[tensor]
        if entry.sharded:
            return [(file.name, file.low, file.high) for file in self.files]
        return [(self.files[0].name, 0, entry.shape[0])]


def file_name(rank: int, size: int) -> str:
    """Return the name of the file of rank ``rank`` of ``size``."""
    return f"rank-{rank:05d}-of-{size:05d}.safetensors"


def attempt_name(token: str) -> str:
    """Return the name of one attempt to write a checkpoint, from a random text of hexadecimal digits."""
    return f"attempt-{token[:8]}"


def manifest_text(manifest: CheckpointManifest) -> str:
    """Return the content of manifest.json, with its checksum."""
    tree = manifest.model_dump()
    return json.dumps(tree | {_DIGEST: _sha256_of_json(tree)}, indent=1, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> CheckpointManifest:
    """Read and validate the manifest of a committed checkpoint.

    Raises:
        LaterFormatError: the checkpoint was written by a later distkg.
        CheckpointError: the manifest is missing, damaged or inconsistent.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {MANIFEST}")
    try:
        tree = read_json(path)
        written, version = tree.pop(_DIGEST), tree["format"]
        if type(version) is int and version > FORMAT:
            raise LaterFormatError(
                f"{folder} has checkpoint format {version}, this distkg reads {FORMAT}. Upgrade distkg"
            )
        if written != _sha256_of_json(tree):
            raise CheckpointError(f"{path} was changed after it was written: its checksum differs")
        manifest = CheckpointManifest.model_validate(tree)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(ascii(part).strip("'") for part in problem["loc"])
        raise CheckpointError(f"{path} is damaged ({place}: {problem['msg']})") from None
    except (JsonError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = error if isinstance(error, JsonError) else "it is not the manifest of a checkpoint"
        raise CheckpointError(f"{path} is damaged ({why})") from None
    problem_of_whole = _contradiction(manifest)
    if problem_of_whole is not None:
        raise CheckpointError(f"{path} is damaged: {problem_of_whole}")
    return manifest


def is_committed(folder: Path) -> bool:
    """Return True for a checkpoint that was committed, damaged or not."""
    if os.path.lexists(folder / MANIFEST):
        return True
    data = (path for pattern in (ROWS_FILES, f"{ATTEMPTS}/{ROWS_FILES}") for path in folder.glob(pattern))
    return not os.path.lexists(folder / UNNAMED) and any(data)


def is_unfinished(folder: Path) -> bool:
    """Return True for the remains of an interrupted write or deletion of a checkpoint."""
    return not is_committed(folder) and os.path.lexists(folder / UNNAMED)


def _contradiction(manifest: CheckpointManifest) -> str | None:
    """Return a contradiction among the numbers of a manifest, or None."""
    files = manifest.files
    names = [file_name(rank, manifest.world_size) for rank in range(len(files))]
    bounds, ends = [file.low for file in files] + [manifest.rows], [0] + [file.high for file in files]
    if bounds != ends or len(files) != manifest.world_size:
        return f"its files do not hold rows 0 to {manifest.rows}"
    attempts = {file.name.rpartition("/")[0] for file in files}
    if [file.name.rpartition("/")[2] for file in files] != names or len(attempts) > 1:
        return f"its files are not {names[0]} and so on"
    for name, entry in manifest.tensors.items():
        if entry.sharded and entry.shape[:1] != [manifest.rows]:
            return f"{name} has shape {entry.shape}, the checkpoint has {manifest.rows} rows"
    row, replicated_bytes = (
        _bytes_of_row(manifest),
        sum(entry.bytes for entry in manifest.tensors.values() if not entry.sharded),
    )
    for index, file in enumerate(files):
        needed = (file.high - file.low) * row + (replicated_bytes if index == 0 else 0)
        if needed > file.bytes:
            return f"the tensors of {file.name} take {needed} bytes, and it has {file.bytes}"
    return None


def _bytes_of_row(manifest: CheckpointManifest) -> int:
    rows = (entry.model_copy(update={"shape": entry.shape[1:]}) for entry in manifest.tensors.values() if entry.sharded)
    return sum(entry.bytes for entry in rows)


def _sha256_of_json(tree: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True, allow_nan=False).encode()).hexdigest()
