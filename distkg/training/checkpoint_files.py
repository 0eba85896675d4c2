"""What a checkpoint is on disk: a folder of safetensors files, one a rank, and ``manifest.json``, written last.

``rank-00001-of-00004.safetensors`` holds the rows of rank 1 of 4, and the first rank's file also the replicated
tensors. The manifest says which rows lie where and carries the size and SHA-256 of every file, and of itself. It
takes its name by one rename when all files are on disk, so a folder with a manifest was written to the end. Nothing
here unpickles, and files that the manifest does not name are never opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = 1
MANIFEST = "manifest.json"

_DIGEST = "sha256"
_UNNAMED = f"{MANIFEST}.part"
_WRITTEN_HERE = (_UNNAMED, "rank-*-of-*.safetensors", ".tmp??????")  # safetensors writes to .tmp…, renames
_BYTES_AT_ONCE = 16 << 20


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, trusted or read as asked; the message says which, why and what to do."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorEntry(_Entry):
    """One tensor of a checkpoint, with the shape of the whole."""

    dtype: str = Field(description="As torch names it: float32, bfloat16, …")
    shape: list[int]
    sharded: bool = Field(description="Rows spread over the files; else whole in the first file.")

    def __str__(self) -> str:
        return f"{'sharded' if self.sharded else 'replicated'} {self.dtype} {self.shape}"


class FileEntry(_Entry):
    """One rank's file."""

    name: str = Field(pattern=r"^rank-\d{5,}-of-\d{5,}\.safetensors$")
    low: int = Field(ge=0, description="First row of the sharded tensors in it.")
    high: int = Field(ge=0, description="One past the last row.")
    bytes: int = Field(ge=0)
    sha256: str


class Manifest(_Entry):
    """What a checkpoint holds.

    Attributes:
        serial: grows by one with every checkpoint of a folder; the newest has the highest, whatever the clocks say.
        created: time of writing, ISO 8601, UTC.
    """

    format: int = FORMAT
    serial: int
    created: str
    best: bool
    world_size: int = Field(ge=1)
    rows: int = Field(ge=0)
    progress: dict[str, JsonValue]
    tensors: dict[str, TensorEntry]
    files: list[FileEntry]

    def pieces(self, tensor: str) -> list[tuple[str, int, int]]:
        """Files that hold a tensor, each with its first row and one past its last."""
        entry = self.tensors[tensor]
        if entry.sharded:
            return [(file.name, file.low, file.high) for file in self.files]
        return [(self.files[0].name, 0, entry.shape[0])]


def file_name(rank: int, size: int) -> str:
    """Name of the file of rank ``rank`` of ``size``."""
    return f"rank-{rank:05d}-of-{size:05d}.safetensors"


def write_file(path: Path, tensors: Mapping[str, Tensor], low: int, high: int) -> FileEntry:
    """Write contiguous CPU tensors to one safetensors file, and return when it is on the disk.

    Raises:
        OSError, SafetensorError: the file could not be written (a full disk, say).
    """
    save_file(dict(tensors), path)
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors leaves it readable by its writer alone
    digest = _sha256_of(path)
    _to_disk(path)
    _to_disk(path.parent)
    return FileEntry(name=path.name, low=low, high=high, bytes=path.stat().st_size, sha256=digest)


def difference(folder: Path, entry: FileEntry) -> str | None:
    """How a file differs from what the manifest says; None where it does not. Reads the whole file."""
    path = folder / entry.name
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            return f"{entry.name} has {size} bytes, its manifest says {entry.bytes}"
        digest = _sha256_of(path)
    except OSError as error:
        return f"{entry.name} cannot be read ({error.strerror or error})"
    if digest != entry.sha256:
        return f"{entry.name} has SHA-256 {digest[:16]}…, its manifest says {entry.sha256[:16]}…"
    return None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit a checkpoint whose files are on the disk: from here on it counts."""
    tree = manifest.model_dump()
    unnamed = folder / _UNNAMED
    unnamed.write_text(json.dumps(tree | {_DIGEST: _sha256_of_json(tree)}, indent=1, allow_nan=False) + "\n", "utf-8")
    _to_disk(unnamed)
    os.replace(unnamed, folder / MANIFEST)
    _to_disk(folder)
    _to_disk(folder.parent)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a committed checkpoint.

    Raises:
        CheckpointError: there is none, it was changed after it was written, or a later distkg wrote it.
    """
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it has no {MANIFEST}")
    try:
        tree = json.loads((folder / MANIFEST).read_bytes())
        written = tree.pop(_DIGEST)
        if tree["format"] != FORMAT:
            raise CheckpointError(f"{folder} has checkpoint format {tree['format']}, this distkg reads {FORMAT}")
        if written != _sha256_of_json(tree):
            raise CheckpointError(f"{folder / MANIFEST} was changed after it was written: its checksum differs")
        return _whole(Manifest.model_validate(tree), folder)
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged ({type(error).__name__}: {error})") from None


def copy_rows(folder: Path, manifest: Manifest, tensor: str, low: int, out: Tensor) -> None:
    """Fill ``out`` with the rows of a tensor from ``low`` on, a few megabytes at a time.

    Raises:
        CheckpointError: a file is damaged, or its tensor has another shape than the manifest says.
    """
    high = low + len(out)
    # Each part opens the file anew: a mapping that lives on would count the whole file as this process's memory.
    step = max(1, _BYTES_AT_ONCE // max(1, out[:1].nbytes))
    for name, first, last in manifest.pieces(tensor):
        expected = [last - first, *manifest.tensors[tensor].shape[1:]]
        start, stop = max(low, first), min(high, last)
        for row in range(start, stop, step):
            end = min(row + step, stop)
            with _opened(folder / name) as file:
                rows = file.get_slice(tensor)
                _check_shape(folder / name, tensor, rows.get_shape(), expected)
                out[row - low : end - low].copy_(rows[row - first : end - first])


def copy_whole(folder: Path, manifest: Manifest, tensor: str, out: Tensor) -> None:
    """Fill ``out`` with a replicated tensor.

    Raises:
        CheckpointError: its file is damaged, or the tensor has another shape than the manifest says.
    """
    path = folder / manifest.files[0].name
    with _opened(path) as file:
        values = file.get_tensor(tensor)
        _check_shape(path, tensor, list(values.shape), manifest.tensors[tensor].shape)
        out.copy_(values)


def is_committed(folder: Path) -> bool:
    """True for a checkpoint that was written to the end."""
    return (folder / MANIFEST).is_file()


def remove(folder: Path) -> None:
    """Delete a checkpoint's own files; the folder too, unless somebody put something else there."""
    (folder / MANIFEST).unlink(missing_ok=True)
    _to_disk(folder)  # a crash after the first file and before the manifest would leave a torn checkpoint
    for pattern in _WRITTEN_HERE:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _whole(manifest: Manifest, folder: Path) -> Manifest:
    bounds = [file.low for file in manifest.files] + [manifest.rows]
    ends = [0] + [file.high for file in manifest.files]
    if bounds != ends or len(manifest.files) != manifest.world_size:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: its files do not hold rows 0 to {manifest.rows}")
    return manifest


def _check_shape(path: Path, tensor: str, found: list[int], expected: list[int]) -> None:
    if list(found) != expected:
        raise CheckpointError(f"{path} holds {tensor} of shape {list(found)}, its manifest says {expected}")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}): use another checkpoint") from error


def _sha256_of(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_json(tree: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
