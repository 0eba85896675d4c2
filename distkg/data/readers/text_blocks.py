"""Text files as blocks of whole lines, so that memory is bounded by the block, not by the file."""

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
    """Triples as labels.

    Attributes:
        columns: heads, relations, tails; each a utf8 array [n].
        lines: int64 [n], line (row, in Parquet) of each triple in its file, from 1.
    """

    columns: tuple[pa.Array, pa.Array, pa.Array]
    lines: NDArray[np.int64]


class Block(NamedTuple):
    """Whole lines of a file, the number of the first of them (from 1), and what ends them.

    Lines end with ``\\n``, before which a ``\\r`` may stand; in a file that has ``\\r`` alone, with that.
    """

    text: bytes
    first_line: int
    line_end: bytes = b"\n"

    @property
    def line_count(self) -> int:
        return self.text.count(self.line_end) + (not self.text.endswith(self.line_end))

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Line number and text of each line, without its end."""
        texts = self.text.split(self.line_end)
        if not texts[-1]:
            texts.pop()
        for offset, text in enumerate(texts):
            if self.line_end == b"\r":
                text = text.removeprefix(b"\n")  # from where on lines of such a file end otherwise
            yield self.first_line + offset, text.removesuffix(b"\r")

    def after(self, lines: int) -> Block:
        """The block without its first lines."""
        text = self.text
        for _ in range(lines):
            text = text.partition(self.line_end)[2]
        return Block(text, self.first_line + lines, self.line_end)


def read_blocks(file: SourceFile, block_bytes: int = 1 << 23) -> Iterator[Block]:
    """Stream a file, decompressing and decoding as it goes.

    Raises:
        IngestError: an unreadable or truncated file (naming the last whole line), or an absurdly long line.
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
    """What ends the lines of a text; empty where it has no line end, or perhaps the half of one."""
    if b"\n" not in text:
        return b"\r" if b"\r" in text[:-1] else b""
    lone = text.count(b"\r") > text.count(b"\r\n")
    return b"\r" if lone and b'"' in text and _only_quoted(text) else b"\n"


def _only_quoted(text: bytes) -> bool:
    """Whether every ``\\n`` stands between quotes and some ``\\r`` does not, as in CSV from Excel on old Macs."""
    data = np.frombuffer(text, np.uint8)
    quoted = np.cumsum(data == ord('"')) & 1 == 1
    return bool(quoted[data == ord("\n")].all() and not quoted[data == ord("\r")].all())


def read_pieces(file: SourceFile) -> Iterator[bytes]:
    """A file's text as UTF-8, in small pieces, so that the place of damage is known to a few lines.

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
