"""File format of a checkpoint: a folder with one safetensors file per rank, and ``manifest.json``, written last.

``rank-00001-of-00004.safetensors`` holds the rows of rank 1 of 4; the first rank's file also holds the replicated
tensors. The manifest lists the rows of each file, the size and SHA-256 of every file, and its own SHA-256. It is
renamed to its name when all files are on disk, so a folder with a manifest is complete. Nothing is unpickled, and files
that are not in the manifest are never opened.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distkg.data.storage.tensor_files import (
    TensorFileError,
    TensorHeader,
    check_tensors,
    read_header,
    read_places,
    write_tensors,
)
from distkg.kernels.finite import is_finite
from distkg.sharding.checkpoint.manifest import (
    ATTEMPTS,
    MANIFEST,
    ROWS_FILES,
    UNNAMED,
    CheckpointError,
    CheckpointManifest,
    ShardFile,
    TensorEntry,
    manifest_text,
)
from distkg.sharding.checkpoint.stored_table import StoredRows
from distkg.strict_json import check_regular

_WRITTEN_HERE = (
    UNNAMED,
    f"{ATTEMPTS}/{ROWS_FILES}",
    ROWS_FILES,
    ".tmp??????",
)  # safetensors writes to .tmp…, renames
_BYTES_AT_ONCE = 16 << 20


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
        broken = _non_finite(path, headers_of(manifest, index))
    except CheckpointError as error:
        return str(error)
    return f"{entry.name} holds NaN or infinity in {', '.join(broken)}" if broken else None


def dtype_of(entry: TensorEntry) -> torch.dtype:
    """Return the torch dtype of a tensor."""
    dtype: torch.dtype = getattr(torch, entry.dtype)
    return dtype


def headers_of(manifest: CheckpointManifest, index: int) -> dict[str, TensorHeader]:
    """Return the data type and shape of each tensor in the file of a rank."""
    rows = manifest.files[index].high - manifest.files[index].low
    return {
        name: TensorHeader(dtype_of(entry), (rows, *entry.shape[1:]) if entry.sharded else tuple(entry.shape))
        for name, entry in manifest.tensors.items()
        if entry.sharded or index == 0
    }


def check_file(folder: Path, manifest: CheckpointManifest, index: int) -> None:
    """Check the header of a rank's file against the manifest, before anything is allocated for its tensors.

    Raises:
        CheckpointError: other tensors, data types or shapes, or not a safetensors file.
    """
    path = folder / manifest.files[index].name
    try:
        check_tensors(read_header(path), headers_of(manifest, index), "its manifest")
    except TensorFileError as error:
        raise CheckpointError(f"{path} is damaged ({error}): use another checkpoint") from None


def write_manifest(folder: Path, manifest: CheckpointManifest) -> None:
    """Commit a checkpoint whose files are on disk."""
    unnamed = folder / UNNAMED
    unnamed.write_text(manifest_text(manifest), "utf-8")
    _to_disk(unnamed)
    os.replace(unnamed, folder / MANIFEST)
    _to_disk(folder)
    _to_disk(folder.parent)


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
    (folder / UNNAMED).touch()


def remove(folder: Path) -> None:
    """Delete the files of a checkpoint, and its folder unless it holds other files. Links are kept."""
    if folder.is_symlink():
        return
    if os.path.lexists(folder / MANIFEST):  # a crash after the first file must not leave a partial checkpoint
        os.replace(folder / MANIFEST, folder / UNNAMED)
        _to_disk(folder)
    for pattern in reversed(_WRITTEN_HERE):  # the mark of an unfinished checkpoint is removed last
        for path in folder.glob(pattern):
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)
    for attempt in folder.glob(ATTEMPTS):
        if attempt.is_dir() and not attempt.is_symlink() and not any(attempt.iterdir()):
            attempt.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


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


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
