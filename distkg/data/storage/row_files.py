"""Integer matrices in safetensors files, written in one pass and read by row ranges, on any file system.

The safetensors library maps whole local files. Here a rank reads only the bytes of its rows, also from s3://.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distkg.data.errors import StoreError
from distkg.data.storage.location import Location
from distkg.data.store.manifest import FileEntry
from distkg.data.store.writer import HashingFile
from distkg.printable import printable
from distkg.strict_json import parse_json

TENSOR = "ids"
ROW_TYPE = np.dtype("<i4")
LONGEST_HEADER = 1 << 16


def write_rows(file: Location, blocks: Iterable[NDArray[np.int32]], rows: int, width: int) -> FileEntry:
    """Write ``rows`` rows from consecutive blocks int32 [b, width]; on an error the file is removed.

    Raises:
        ValueError: a block has another width, or the total number of rows is not ``rows``.
    """
    out = HashingFile(file.filesystem.open_output_stream(file.path, compression=None))
    written = 0
    try:
        out.write(rows_header(TENSOR, "I32", rows, width))
        for block in blocks:
            if block.shape[1] != width:
                raise ValueError(f"a block of {block.shape[1]} columns in a file of {width}")
            out.write(block.astype(ROW_TYPE, copy=False).tobytes())
            written += len(block)
        if written != rows:
            raise ValueError(f"{written} rows in a file of {rows}")
        out.close()
    except BaseException:
        out.close()
        file.filesystem.delete_file(file.path)
        raise
    return out.entry(rows)


@dataclass(frozen=True)
class RowFile:
    """Opened file of int32 [rows, width]; create it with ``RowFile.open``."""

    file: Location
    rows: int
    width: int
    first_byte: int

    @classmethod
    def open(cls, file: Location) -> RowFile:
        """Open a file and read its header.

        Raises:
            StoreError: no such file, or a file of another format.
        """
        try:
            with file.filesystem.open_input_file(file.path) as stream:
                length = int.from_bytes(stream.read(8), "little")
                if length > LONGEST_HEADER:
                    raise ValueError("its header is too long")
                tensor = parse_json(stream.read(length))[TENSOR]
                rows, width = tensor["shape"]
                if type(rows) is not int or type(width) is not int or rows < 0 or width < 1:
                    raise ValueError(f"its shape is {tensor['shape']}")
                expected = 8 + length + rows * width * ROW_TYPE.itemsize
                if tensor["dtype"] != "I32" or stream.size() != expected:
                    raise ValueError(f"{stream.size():,} bytes instead of {expected:,} of int32")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise StoreError(f"{file.path} cannot be read: {printable(str(error))[:200]}. Make it again") from None
        return cls(file, rows, width, 8 + length)

    def read(self, low: int, high: int) -> NDArray[np.int32]:
        """Read rows [low, high): int32 [high - low, width]."""
        if not 0 <= low <= high <= self.rows:
            raise ValueError(f"rows {low} to {high} of {self.rows}")
        row_bytes = self.width * ROW_TYPE.itemsize
        with self.file.filesystem.open_input_file(self.file.path) as stream:
            content = stream.read_at((high - low) * row_bytes, self.first_byte + low * row_bytes)
        return np.frombuffer(content, ROW_TYPE).reshape(high - low, self.width).astype(np.int32)


def rows_header(tensor: str, dtype: Literal["I32", "F32"], rows: int, width: int) -> bytes:
    """Return the header of a safetensors file of one tensor [rows, width]; the values follow it, 4 bytes each.

    Format: 8 bytes little-endian length of the header, the header as JSON, the tensors one after the other.
    """
    entry = {"dtype": dtype, "shape": [rows, width], "data_offsets": [0, 4 * rows * width]}
    text = json.dumps({tensor: entry}, separators=(",", ":")).encode()
    padded = text.ljust(-(-len(text) // 8) * 8)  # values begin at a multiple of 8
    return len(padded).to_bytes(8, "little") + padded
