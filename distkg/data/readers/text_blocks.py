"""Text files as blocks of whole lines, so that memory is bounded by the block instead of the file."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distkg.data.errors import IngestError
from distkg.data.readers.sources import SourceFile
from distkg.data.readers.text_stream import utf8_pieces

LONGEST_LINE = 1 << 26
PIECE_BYTES = 1 << 19


class LabelBatch(NamedTuple):
    """Batch of triples as labels.

    Attributes:
        columns: heads, relations, tails; each a utf8 array [n].
        lines: int64 [n], line of each triple in its file (row in Parquet, triple number in RDF documents), from 1.
    """

    columns: tuple[pa.Array, pa.Array, pa.Array]
    lines: NDArray[np.int64]


class Block(NamedTuple):
    """Whole lines of a file, with the number of the first line (from 1) and the line end.

    Lines end with ``\\n`` or ``\\r\\n``; in a file without ``\\n``, with ``\\r``.
    """

    text: bytes
    first_line: int
    line_end: bytes = b"\n"

    @property
    def line_count(self) -> int:
        return self.text.count(self.line_end) + (not self.text.endswith(self.line_end))

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield number and text of each line, without its line end."""
        texts = self.text.split(self.line_end)
        if not texts[-1]:
            texts.pop()
        for offset, text in enumerate(texts):
            if self.line_end == b"\r":
                text = text.removeprefix(b"\n")  # a file that changes its line end
            yield self.first_line + offset, text.removesuffix(b"\r")

    def after(self, lines: int) -> Block:
        """Return the block without its first ``lines`` lines."""
        text = self.text
        for _ in range(lines):
            text = text.partition(self.line_end)[2]
        return Block(text, self.first_line + lines, self.line_end)


def read_blocks(file: SourceFile, block_bytes: int = 1 << 23) -> Iterator[Block]:
    """Stream a file as blocks, decompressed and decoded.

    Raises:
        IngestError: an unreadable or truncated file (names the last whole line), or a line over ``LONGEST_LINE``.
    """
    line, pending, line_end = 1, b"", b""
    for piece in read_pieces(file):
        pending += piece
        if len(pending) < block_bytes:
            continue
        line_end = line_end or _line_end(pending)
        text, newline, pending = pending.rpartition(line_end or b"\n")
        if newline:
            block = Block(text + newline, line, line_end)
            line += block.line_count
            yield block
        if len(pending) > LONGEST_LINE:
            longest = f"{LONGEST_LINE >> 20} MiB"
            raise IngestError(f"{file.name}:{line}: a line longer than {longest}; is this a text file?")
    if pending:
        yield Block(pending, line, line_end or _line_end(pending) or b"\n")


def _line_end(text: bytes) -> bytes:
    """Detect the line end of a text; empty if it has none, or ends within a possible ``\\r\\n``."""
    if b"\n" not in text:
        return b"\r" if b"\r" in text[:-1] else b""
    lone = text.count(b"\r") > text.count(b"\r\n")
    return b"\r" if lone and b'"' in text and _only_quoted(text) else b"\n"


def _only_quoted(text: bytes) -> bool:
    """Return True if every ``\\n`` is within quotes and some ``\\r`` is not, as in CSV from Excel on old Macs."""
    data = np.frombuffer(text, np.uint8)
    quoted = np.cumsum(data == ord('"')) & 1 == 1
    return bool(quoted[data == ord("\n")].all() and not quoted[data == ord("\r")].all())


def read_pieces(file: SourceFile) -> Iterator[bytes]:
    """Stream a file's text as UTF-8 in small pieces, so that damage is located to within a few lines.

    Raises:
        IngestError: as ``read_blocks``.
    """
    lines = 0
    try:
        for piece in utf8_pieces(file, PIECE_BYTES):
            yield piece
            lines += piece.count(b"\n")
    except (OSError, pa.ArrowException, lzma.LZMAError) as error:
        raise IngestError(
            f"{file.name}:{lines + 1}: the file cannot be read from about this line on ({error}). "
            "It is damaged or cut off; fetch it again"
        ) from None
