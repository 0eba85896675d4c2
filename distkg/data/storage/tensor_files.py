"""Writer and safe reader of safetensors files: headers are size-limited and checked against the file before any
allocation.

Format: 8 bytes little-endian length of the header, the header as JSON, the tensors one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from distkg.strict_json import JsonError, check_regular, parse_json

MAX_HEADER_BYTES = 16 << 20

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Allowed data types: safetensors name → torch dtype."""

MAX_DIMENSIONS = 64  # limit of torch

_LENGTH = 8  # bytes


class TensorFileError(ValueError):
    """A safetensors file is invalid; the message says what is wrong, but not in which file."""


@dataclass(frozen=True)
class TensorHeader:
    """Data type and shape of a tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorHeader:
        """Header of a tensor in memory."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def bytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous CPU tensors to a file with the read permissions of its folder.

    Raises:
        OSError, SafetensorError: the file could not be written (for example, the disk is full).
    """
    save_file(dict(tensors), path)
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes it readable by its owner only


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Read the header of a file: name → data type and shape of each tensor. The values are not read.

    Raises:
        TensorFileError: not a regular file (for example a link), or a header that is not JSON, is longer than 16 MiB or
            than the file, has unknown fields or data types, or whose tensors leave gaps or overlap.
    """
    return {name: header for name, (header, _) in read_places(path).items()}


def read_places(path: Path) -> dict[str, tuple[TensorHeader, int]]:
    """Read the header of a file as ``read_header``, with the position of each tensor's values in the file, bytes."""
    try:
        size = check_regular(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            if size < _LENGTH or length > min(size - _LENGTH, MAX_HEADER_BYTES):
                raise TensorFileError(f"its header claims {length:,} bytes, the file has {size:,}")
            tree = parse_json(file.read(length))
    except JsonError as error:
        raise TensorFileError(str(error)) from None
    except OSError as error:
        raise TensorFileError(f"it cannot be read: {error.strerror or error}") from None
    if not isinstance(tree, dict):
        raise TensorFileError("its header is not a JSON object")
    notes = tree.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise TensorFileError("its __metadata__ must be an object with string values")
    entries = {name: _entry(name, entry) for name, entry in tree.items()}
    _check_filled([place for _, place in entries.values()], size - _LENGTH - length)
    return {name: (header, _LENGTH + length + start) for name, (header, (start, _)) in entries.items()}


def check_tensors(found: Mapping[str, TensorHeader], expected: Mapping[str, TensorHeader], source: str) -> None:
    """Compare the tensors of a file with the expected ones.

    Args:
        source: origin of ``expected`` in the message, such as "its manifest".

    Raises:
        TensorFileError: a tensor has another data type or shape, is missing, or is unexpected.
    """
    for name in sorted(found.keys() & expected.keys()):
        actual, required = found[name], expected[name]
        if actual.shape != required.shape:
            raise TensorFileError(
                f"it holds {name} of shape {list(actual.shape)}, {source} says {list(required.shape)}"
            )
        if actual.dtype != required.dtype:
            raise TensorFileError(f"it holds {name} as {actual}, {source} says {required}")
    for name in sorted(expected.keys() - found.keys()):
        raise TensorFileError(f"it lacks the tensor {name}")
    for name in sorted(found.keys() - expected.keys()):
        raise TensorFileError(f"it holds an unexpected tensor {ascii(name)[:80]}")


def _entry(name: str, entry: Any) -> tuple[TensorHeader, tuple[int, int]]:
    """Parse a header entry: data type and shape of a tensor, and byte range of its values."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise TensorFileError(f"its header entry {ascii(name)[:80]} must have dtype, shape and data_offsets, no more")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise TensorFileError(f"{ascii(name)[:80]} has data type {ascii(dtype)[:40]}; known are {', '.join(DTYPES)}")
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        raise TensorFileError(f"shape and data_offsets of {ascii(name)[:80]} must be lists of whole numbers from 0")
    header = TensorHeader(DTYPES[dtype], tuple(shape))
    if header.bytes != offsets[1] - offsets[0]:
        raise TensorFileError(f"{ascii(name)[:80]} is {header}, but fills {offsets[1] - offsets[0]:,} bytes")
    return header, (offsets[0], offsets[1])


def _are_sizes(values: Any) -> bool:
    """Return True for a list of at most ``MAX_DIMENSIONS`` int64 values ≥ 0."""
    short = isinstance(values, list) and len(values) <= MAX_DIMENSIONS
    return short and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _check_filled(places: list[tuple[int, int]], size: int) -> None:
    bounds = [(0, 0), *sorted(places), (size, size)]
    if any(end != start for (_, end), (start, _) in pairwise(bounds)):
        raise TensorFileError(f"its tensors do not fill its {size:,} bytes of values without gap and overlap")
