"""Text files as blocks of whole lines, so that memory is bounded by the block, not by the file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distkg.data.errors import IngestError
from distkg.data.sources import SourceFile

LONGEST_LINE = 1 << 26
PIECE_BYTES = 1 << 19
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LabelBatch(NamedTuple):
    """Triples as labels.

    Attributes:
        columns: heads, relations, tails; each a utf8 array [n].
        lines: int64 [n], line (row, in Parquet) of each triple in its file, from 1.
    """

    columns: tuple[pa.Array, pa.Array, pa.Array]
    lines: NDArray[np.int64]


class Block(NamedTuple):
    """Whole lines of a file, and the number of the first of them (from 1)."""

    text: bytes
    first_line: int

    @property
    def line_count(self) -> int:
        return self.text.count(b"\n") + (not self.text.endswith(b"\n"))

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Line number and text of each line, without its end."""
        texts = self.text.split(b"\n")
        if not texts[-1]:
            texts.pop()
        for offset, text in enumerate(texts):
            yield self.first_line + offset, text.removesuffix(b"\r")


def read_blocks(file: SourceFile, block_bytes: int = 1 << 23) -> Iterator[Block]:
    """Stream a file, decompressing as it goes.

    Raises:
        IngestError: an unreadable or truncated file (naming the last whole line), or an absurdly long line.
    """
    line, pending = 1, b""
    for piece in _read_pieces(file):
        pending += piece
        if len(pending) < block_bytes:
            continue
        text, newline, pending = pending.rpartition(b"\n")
        if newline:
            block = Block(text + newline, line)
            line += block.line_count
            yield block
        if len(pending) > LONGEST_LINE:
            longest = f"{LONGEST_LINE >> 20} MiB"
            raise IngestError(f"{file.name}:{line}: a line longer than {longest}; is this a text file?")
    if pending:
        yield Block(pending, line)


def _read_pieces(file: SourceFile) -> Iterator[bytes]:
    """Small pieces, so that the place of damage is known to a few lines."""
    lines = 0
    try:
        with file.location.filesystem.open_input_stream(
            file.location.path, compression=file.compression, buffer_size=1 << 20
        ) as stream:
            piece = stream.read(PIECE_BYTES).removeprefix(BYTE_ORDER_MARK)
            while piece:
                yield piece
                lines += piece.count(b"\n")
                piece = stream.read(PIECE_BYTES)
    except (OSError, pa.ArrowInvalid) as error:
        raise IngestError(
            f"{file.name}:{lines + 1}: the file cannot be read from about this line on ({error}). "
            "It is damaged or cut off; fetch it again"
        ) from None
