"""File format of a checkpoint: a folder with one safetensors file per rank, and ``manifest.json``, written last.

``rank-00001-of-00004.safetensors`` holds the rows of rank 1 of 4; the first rank's file also holds the replicated
tensors. The manifest lists the rows of each file, the size and SHA-256 of every file, and its own SHA-256. It is
renamed to its name when all files are on disk, so a folder with a manifest is complete. Nothing is unpickled, and files
that are not in the manifest are never opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distkg.data.storage.tensor_files import (
    DTYPES,
    MAX_DIMENSIONS,
    TensorFileError,
    TensorHeader,
    check_tensors,
    read_header,
    read_places,
    write_tensors,
)
from distkg.kernels.finite import is_finite
from distkg.sharding.checkpoint.stored_table import StoredRows
from distkg.strict_json import JsonError, check_regular, read_json

FORMAT = 1
MANIFEST = "manifest.json"

_DIGEST = "sha256"
_UNNAMED = f"{MANIFEST}.part"
_ROWS_FILES = "rank-*-of-*.safetensors"
_ATTEMPT = r"attempt-[0-9a-f]{8}"
_ATTEMPTS = "attempt-????????"
_WRITTEN_HERE = (
    _UNNAMED,
    f"{_ATTEMPTS}/{_ROWS_FILES}",
    _ROWS_FILES,
    ".tmp??????",
)  # safetensors writes to .tmp…, renames
_BYTES_AT_ONCE = 16 << 20
_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


class CheckpointError(ValueError):
    """A checkpoint cannot be written, trusted or read; the message says which, why and what to do."""


class LaterFormatError(CheckpointError):
    """The checkpoint was written by a later distkg."""


def _known_dtype(name: str) -> str:
    if name not in _BY_NAME:
        raise ValueError(f"not a data type of checkpoints; known are {', '.join(_BY_NAME)}")
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
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype."""
        return _BY_NAME[self.dtype]

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

    def headers(self, index: int) -> dict[str, TensorHeader]:
        """Return the data type and shape of each tensor in the file of a rank."""
        rows = self.files[index].high - self.files[index].low
        return {
            name: TensorHeader(entry.torch_dtype, (rows, *entry.shape[1:]) if entry.sharded else tuple(entry.shape))
            for name, entry in self.tensors.items()
            if entry.sharded or index == 0
        }


def file_name(rank: int, size: int) -> str:
    """Return the name of the file of rank ``rank`` of ``size``."""
    return f"rank-{rank:05d}-of-{size:05d}.safetensors"


def attempt_name(token: str) -> str:
    """Return the name of one attempt to write a checkpoint, from a random text of hexadecimal digits."""
    return f"attempt-{token[:8]}"


def write_file(path: Path, tensors: Mapping[str, Tensor], low: int, high: int) -> ShardFile:
    """Write contiguous CPU tensors to one safetensors file, and return when it is on disk.

    Raises:
        OSError, SafetensorError: the file could not be written (for example, the disk is full).
    """
    write_tensors(path, tensors)
    digest = sha256_of(path)
    _to_disk(path)
    _to_disk(path.parent)
    return ShardFile(name=path.name, low=low, high=high, bytes=path.stat().st_size, sha256=digest)


def difference(folder: Path, manifest: CheckpointManifest, index: int) -> str | None:
    """Compare the file of a rank with the manifest, reading it whole; return the problem, or None.

    NaN or infinity is a problem too, since distkg never writes it.
    """
    entry = manifest.files[index]
    path = folder / entry.name
    try:
        size = check_regular(path)
        if size != entry.bytes:
            return f"{entry.name} has {size} bytes, its manifest says {entry.bytes}"
        digest = sha256_of(path)
    except OSError as error:
        return f"{entry.name} cannot be read ({error.strerror or error})"
    if digest != entry.sha256:
        return f"{entry.name} has SHA-256 {digest[:16]}…, its manifest says {entry.sha256[:16]}…"
    try:
        check_file(folder, manifest, index)
        broken = _non_finite(path, manifest.headers(index))
    except CheckpointError as error:
        return str(error)
    return f"{entry.name} holds NaN or infinity in {', '.join(broken)}" if broken else None


def check_file(folder: Path, manifest: CheckpointManifest, index: int) -> None:
    """Check the header of a rank's file against the manifest, before anything is allocated for its tensors.

    Raises:
        CheckpointError: other tensors, data types or shapes, or not a safetensors file.
    """
    path = folder / manifest.files[index].name
    try:
        check_tensors(read_header(path), manifest.headers(index), "its manifest")
    except TensorFileError as error:
        raise CheckpointError(f"{path} is damaged ({error}): use another checkpoint") from None


def write_manifest(folder: Path, manifest: CheckpointManifest) -> None:
    """Commit a checkpoint whose files are on disk."""
    unnamed = folder / _UNNAMED
    unnamed.write_text(manifest_text(manifest), "utf-8")
    _to_disk(unnamed)
    os.replace(unnamed, folder / MANIFEST)
    _to_disk(folder)
    _to_disk(folder.parent)


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


def copy_rows(folder: Path, manifest: CheckpointManifest, tensor: str, low: int, out: Tensor) -> None:
    """Fill ``out`` with the rows of a tensor from ``low`` on, a few megabytes at a time.

    Raises:
        CheckpointError: a file is damaged, or its tensor has another shape than in the manifest.
    """
    high = low + len(out)
    # The file is opened for each part: with one mapping the whole file would count as memory of this process.
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


def open_rows(folder: Path, manifest: CheckpointManifest, index: int, tensor: str) -> StoredRows:
    """Open the file of a rank for reading rows of a sharded tensor; the caller closes its descriptor.

    Raises:
        CheckpointError: the file is missing or damaged, or does not match the manifest.
    """
    entry, path = manifest.files[index], folder / manifest.files[index].name
    check_file(folder, manifest, index)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): use another checkpoint") from None
    return StoredRows(descriptor, read_places(path)[tensor][1], entry.low, entry.high)


def copy_whole(folder: Path, manifest: CheckpointManifest, tensor: str, out: Tensor) -> None:
    """Fill ``out`` with a replicated tensor.

    Raises:
        CheckpointError: the file is damaged, or the tensor has another shape than in the manifest.
    """
    path = folder / manifest.files[0].name
    with _opened(path) as file:
        values = file.get_tensor(tensor)
        _check_shape(path, tensor, list(values.shape), manifest.tensors[tensor].shape)
        out.copy_(values)


def begin(folder: Path) -> None:
    """Create the folder of a checkpoint, marked as unfinished until its manifest replaces the mark."""
    folder.mkdir(exist_ok=True)
    (folder / _UNNAMED).touch()


def is_committed(folder: Path) -> bool:
    """Return True for a checkpoint that was committed, damaged or not."""
    if os.path.lexists(folder / MANIFEST):
        return True
    data = (path for pattern in (_ROWS_FILES, f"{_ATTEMPTS}/{_ROWS_FILES}") for path in folder.glob(pattern))
    return not os.path.lexists(folder / _UNNAMED) and any(data)


def is_unfinished(folder: Path) -> bool:
    """Return True for the remains of an interrupted write or deletion of a checkpoint."""
    return not is_committed(folder) and os.path.lexists(folder / _UNNAMED)


def remove(folder: Path) -> None:
    """Delete the files of a checkpoint, and its folder unless it holds other files. Links are kept."""
    if folder.is_symlink():
        return
    if os.path.lexists(folder / MANIFEST):  # a crash after the first file must not leave a partial checkpoint
        os.replace(folder / MANIFEST, folder / _UNNAMED)
        _to_disk(folder)
    for pattern in reversed(_WRITTEN_HERE):  # the mark of an unfinished checkpoint is removed last
        for path in folder.glob(pattern):
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)
    for attempt in folder.glob(_ATTEMPTS):
        if attempt.is_dir() and not attempt.is_symlink() and not any(attempt.iterdir()):
            attempt.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


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
        sum(_bytes(entry) for entry in manifest.tensors.values() if not entry.sharded),
    )
    for index, file in enumerate(files):
        needed = (file.high - file.low) * row + (replicated_bytes if index == 0 else 0)
        if needed > file.bytes:
            return f"the tensors of {file.name} take {needed} bytes, and it has {file.bytes}"
    return None


def _bytes_of_row(manifest: CheckpointManifest) -> int:
    rows = (entry.model_copy(update={"shape": entry.shape[1:]}) for entry in manifest.tensors.values() if entry.sharded)
    return sum(_bytes(entry) for entry in rows)


def _bytes(entry: TensorEntry) -> int:
    return TensorHeader(entry.torch_dtype, tuple(entry.shape)).bytes


def _non_finite(path: Path, headers: Mapping[str, TensorHeader]) -> list[str]:
    """Return the names of a file's tensors with NaN or infinity, reading a few megabytes at a time."""
    return sorted(name for name, header in headers.items() if not _holds_numbers(path, name, header))


def _holds_numbers(path: Path, name: str, header: TensorHeader) -> bool:
    if not header.dtype.is_floating_point or not header.bytes:
        return True
    if not header.shape:
        with _opened(path) as file:
            return is_finite(file.get_tensor(name))
    step = max(1, _BYTES_AT_ONCE * header.shape[0] // header.bytes)
    for low in range(0, header.shape[0], step):
        with _opened(path) as file:
            if not is_finite(file.get_slice(name)[low : low + step]):
                return False
    return True


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


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file in hexadecimal."""
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
