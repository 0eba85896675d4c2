"""Safetensors files: written, and their headers read with bounds and held against the file before any allocation.

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
"""The data types that files may hold, by the names that safetensors gives to them."""

MAX_DIMENSIONS = 64  # of torch

_LENGTH = 8  # bytes


class TensorFileError(ValueError):
    """A safetensors file that cannot be trusted; the message says what is wrong with it, but not which file."""


@dataclass(frozen=True)
class TensorHeader:
    """Data type and shape of a tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorHeader:
        """Those of a tensor."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def bytes(self) -> int:
        """Size of its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous CPU tensors to a file that whoever may read its folder may read.

    Raises:
        OSError, SafetensorError: the file could not be written (a full disk, say).
    """
    save_file(dict(tensors), path)
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors leaves it readable by its writer alone


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Name → data type and shape of each tensor of a file. Nothing but the header is read.

    Raises:
        TensorFileError: not a regular file (a link, say), or a header that is no JSON, is longer than 16 MiB or than
            the file, has unknown fields or data types, or whose tensors do not fill the file without gap and overlap.
    """
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
        raise TensorFileError("its header is no JSON object")
    notes = tree.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise TensorFileError("its __metadata__ is no object of texts")
    entries = {name: _entry(name, entry) for name, entry in tree.items()}
    _check_filled([place for _, place in entries.values()], size - _LENGTH - length)
    return {name: header for name, (header, _) in entries.items()}


def check_tensors(found: Mapping[str, TensorHeader], expected: Mapping[str, TensorHeader], source: str) -> None:
    """Hold the tensors of a file against those that it must have.

    Args:
        source: of what is expected, for the message, such as "its manifest".

    Raises:
        TensorFileError: a tensor has another data type or shape, is missing, or is one too many.
    """
    for name in sorted(found.keys() & expected.keys()):
        here, there = found[name], expected[name]
        if here.shape != there.shape:
            raise TensorFileError(f"it holds {name} of shape {list(here.shape)}, {source} says {list(there.shape)}")
        if here.dtype != there.dtype:
            raise TensorFileError(f"it holds {name} as {here}, {source} says {there}")
    for name in sorted(expected.keys() - found.keys()):
        raise TensorFileError(f"it lacks the tensor {name}")
    for name in sorted(found.keys() - expected.keys()):
        raise TensorFileError(f"it holds a tensor {ascii(name)[:80]} that does not belong there")


def _entry(name: str, entry: Any) -> tuple[TensorHeader, tuple[int, int]]:
    """Data type and shape of a tensor, and where its values begin and end."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise TensorFileError(f"its header says of {ascii(name)[:80]} other things than dtype, shape and data_offsets")
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
    """Whether it is a short list of int64 ≥ 0."""
    short = isinstance(values, list) and len(values) <= MAX_DIMENSIONS
    return short and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _check_filled(places: list[tuple[int, int]], size: int) -> None:
    bounds = [(0, 0), *sorted(places), (size, size)]
    if any(end != start for (_, end), (start, _) in pairwise(bounds)):
        raise TensorFileError(f"its tensors do not fill its {size:,} bytes of values without gap and overlap")
