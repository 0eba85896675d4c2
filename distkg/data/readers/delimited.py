"""Reader of delimited text (TSV, CSV and similar), one triple per record.

A block without faults is parsed whole by pyarrow's CSV parser. A block with a fault is parsed again record by record,
so that each fault is reported with its line and reason.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv

from distkg.data.readers.headers import column_order
from distkg.data.readers.line_layout import NAMED, Layout, detect_layout, shown_delimiter
from distkg.data.readers.problems import Problems
from distkg.data.readers.records import BROKEN, LONGEST_RECORD, UNCLOSED, find_records
from distkg.data.readers.sources import SourceFile
from distkg.data.readers.text_blocks import Block, LabelBatch, read_blocks
from distkg.data.readers.text_stream import undecodable

__all__ = ["Layout", "column_order", "detect_layout", "has_empty", "read_delimited"]

NAME_ENCODING = "If the file is in another encoding, name it, such as --encoding cp1252 (Windows) or latin-1. "

Row = tuple[int, list[str]]
"""Line number, and labels of head, relation and tail."""


def read_delimited(file: SourceFile, problems: Problems) -> Iterator[LabelBatch]:
    """Stream triples from delimited text; delimiter, columns and header are detected from the first lines.

    Records with an unusual number of columns, an empty label or invalid UTF-8 are rejected. Blank lines and comments
    (``#`` and an unusual number of columns) are counted.

    Raises:
        IngestError: the columns of head, relation and tail cannot be detected and are not given.
    """
    blocks = read_blocks(file)
    start = next(blocks, None)
    if start is None:
        return
    layout = detect_layout(start, file.extension, file.options, file.name)
    _note_layout(layout, file, problems)
    first = _HeaderDetector(layout, file, problems)
    triples = _counting_nuls(chain([start.after(layout.preface)], blocks), file, problems)
    for records in _whole_records(triples, layout, file, problems):
        batch = _parse(records, layout, file, problems) or _parse_by_record(records, layout, file, problems)
        batch = _without_header(batch, layout, file, problems)
        first.watch(batch)
        yield batch
    first.close()


def _counting_nuls(blocks: Iterable[Block], file: SourceFile, problems: Problems) -> Iterator[Block]:
    for block in blocks:
        if b"\0" in block.text:
            line = block.first_line + block.text[: block.text.index(b"\0")].count(block.line_end)
            problems.note("nul_bytes", f"{file.name}:{line}", block.text.count(b"\0"))
        yield block


def _note_layout(layout: Layout, file: SourceFile, problems: Problems) -> None:
    """Count the lines before the first triple, and note how the file is read."""
    problems.note("comment_lines", f"{file.name}:1", layout.comments)
    problems.note("blank_lines", f"{file.name}:1", layout.blank)
    if layout.header:
        problems.note("header_lines", f"{file.name}:{layout.preface}")
    expected = "," if file.extension == "csv" else "\t"
    if file.extension in ("csv", "tsv") and layout.delimiter != expected:
        shown = NAMED.get(layout.delimiter, repr(layout.delimiter))
        problems.tell(f"{file.name}: read as {shown}-separated, although its extension is .{file.extension}")
    for sentence in layout.notes:
        problems.tell(f"{file.name}: {sentence}")
    problems.note("columns_left_out", f"{file.name}: {', '.join(layout.left_out)}", len(layout.left_out))


class _HeaderDetector:
    """Detector of an unmarked header: the first triple of a file, if none of its labels recurs in its column."""

    def __init__(self, layout: Layout, file: SourceFile, problems: Problems) -> None:
        self._file, self._problems = file, problems
        self._line = layout.preface + 1
        self._open = file.options.header is None and not layout.header
        self._labels: tuple[str, str, str] | None = None
        self._rows = 0

    def watch(self, batch: LabelBatch) -> None:
        """Check the next triples of the file for the labels of the first."""
        if not self._open or not len(batch.lines):
            return
        columns = batch.columns
        if self._labels is None:
            if batch.lines[0] != self._line:
                self._open = False  # the first line is rejected or blank
                return
            head, relation, tail = (column[0].as_py() for column in columns)
            self._labels = head, relation, tail
            columns = columns[0].slice(1), columns[1].slice(1), columns[2].slice(1)
        self._rows += len(batch.lines)
        # Relations first: in nearly all files the first relation recurs in the first block.
        self._open = not any(
            pc.any(pc.equal(columns[place], self._labels[place])).as_py() for place in (1, 0, 2) if len(columns[place])
        )

    def close(self) -> None:
        """Report a first triple that may be a header to ``problems``."""
        if self._open and self._labels is not None and self._rows > 1:
            self._problems.possible_headers.append((self._file.name, self._line, self._labels))


class _Records(NamedTuple):
    """Complete records of a file.

    Attributes:
        block: text of the records.
        starts: int64 [n + 1], byte offset of each record in the text; None if each line is a record.
        lines: int64 [n + 1], number of lines of the block before each record.
        broken: bool [n], True for records with broken quoting.
    """

    block: Block
    starts: NDArray[np.int64] | None = None
    lines: NDArray[np.int64] | None = None
    broken: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return self.block.line_count if self.starts is None else len(self.starts) - 1

    def texts(self) -> Iterator[tuple[int, bytes, bool]]:
        """Yield line number, text without its line end, and whether the quoting is broken, for each record."""
        if self.starts is None or self.lines is None or self.broken is None:
            for line, text in self.block.lines():
                yield line, text, False
            return
        content, end = self.block.text, self.block.line_end
        for place in range(len(self)):
            text = content[self.starts[place] : self.starts[place + 1]].removesuffix(end).removesuffix(b"\r")
            yield self.block.first_line + int(self.lines[place]), text, bool(self.broken[place])


def _whole_records(blocks: Iterable[Block], layout: Layout, file: SourceFile, problems: Problems) -> Iterator[_Records]:
    """Cut blocks at the ends of records, which may span several lines.

    If a quote does not close within ``LONGEST_RECORD`` bytes or before the end of the file, its line is rejected, and
    reading continues with the next line.
    """
    rest: Block | None = None
    for block in blocks:
        if rest is not None:
            block = Block(rest.text + block.text, rest.first_line, block.line_end)
        rest = yield from _closed_records(block, layout, file, problems, at_end=False)
    if rest is not None:
        yield from _closed_records(rest, layout, file, problems, at_end=True)


def _closed_records(
    block: Block, layout: Layout, file: SourceFile, problems: Problems, at_end: bool
) -> Generator[_Records, None, Block | None]:
    """Yield the records of a block; return the last one instead if it may close in the next block."""
    while block.text:
        if not layout.quoted or b'"' not in block.text:
            yield _Records(block)
            return None
        starts, lines, state = find_records(block.text, layout.delimiter, block.line_end)
        endless = (np.diff(starts) > LONGEST_RECORD) & (np.diff(lines) > 1)
        endless[-1] |= state[-1] == UNCLOSED
        if not endless.any():
            yield _Records(block, starts, lines, state == BROKEN)
            return None
        place = int(endless.argmax())
        begin, end = int(lines[place]), int(starts[place])
        if place:
            sound = Block(block.text[:end], block.first_line, block.line_end)
            yield _Records(sound, starts[: place + 1], lines[: place + 1], state[:place] == BROKEN)
        rest = Block(block.text[end:], block.first_line + begin, block.line_end)
        if not at_end and len(rest.text) <= LONGEST_RECORD:
            return rest
        within = "before the end of the file" if at_end else f"within {LONGEST_RECORD:,} bytes"
        line, text = next(rest.lines())
        problems.reject(file.name, line, f"broken quoting: a quote opens here and does not close {within}", text)
        block = rest.after(1)
    return None


def _parse(records: _Records, layout: Layout, file: SourceFile, problems: Problems) -> LabelBatch | None:
    """Parse the records with pyarrow; None if a record has a fault."""
    block = records.block
    if not _clean_line_ends(block) or (records.broken is not None and records.broken.any()):
        return None
    names = [str(column) for column in range(layout.columns)]
    chosen = [str(column) for column in layout.order]
    multiline = len(records) != block.line_count
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(block.text),
            arrow_csv.ReadOptions(column_names=names, block_size=len(block.text) + 1, use_threads=False),
            arrow_csv.ParseOptions(
                delimiter=layout.delimiter,
                quote_char='"' if layout.quoted else False,
                ignore_empty_lines=False,
                newlines_in_values=multiline,
            ),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(chosen, pa.utf8()), include_columns=chosen, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    head, relation, tail = (column.combine_chunks() for column in table.columns)
    if table.num_rows != len(records) or any(has_empty(column) for column in (head, relation, tail)):
        return None
    lines = np.arange(table.num_rows, dtype=np.int64)
    if multiline and records.lines is not None:
        lines = records.lines[:-1]
        _count_lines(records.lines, block, file, problems)
    return LabelBatch((head, relation, tail), block.first_line + lines)


def _count_lines(lines: NDArray[np.int64], block: Block, file: SourceFile, problems: Problems) -> None:
    multiline = np.flatnonzero(np.diff(lines) > 1)
    if len(multiline):
        where = f"{file.name}:{block.first_line + int(lines[multiline[0]])}"
        problems.note("records_over_several_lines", where, len(multiline))


def _clean_line_ends(block: Block) -> bool:
    """Return True if pyarrow splits the block at the same line ends; it treats every carriage return as one."""
    if block.line_end == b"\r":
        return b"\n" not in block.text
    return block.text.count(b"\r") == block.text.count(b"\r\n")


def has_empty(labels: pa.Array) -> bool:
    """Return True if any label of a utf8 array is empty."""
    offsets = np.frombuffer(labels.buffers()[1], dtype=np.int32)
    offsets = offsets[labels.offset : labels.offset + len(labels) + 1]
    return bool((np.diff(offsets) == 0).any())


def _parse_by_record(records: _Records, layout: Layout, file: SourceFile, problems: Problems) -> LabelBatch:
    rows: list[Row] = []
    for line, text, broken in records.texts():
        if not text:
            problems.note("blank_lines", f"{file.name}:{line}")
            continue
        row_or_reason = "broken quoting" if broken else _checked_row(text, layout, file)
        if isinstance(row_or_reason, str) and not broken and (parts := _rows_within(text, layout, file)):
            rows += [(line, row) for row in parts]
        elif not isinstance(row_or_reason, str):
            if b"\n" in text:
                problems.note("records_over_several_lines", f"{file.name}:{line}")
            rows.append((line, row_or_reason))
        elif text.startswith(b"#") and row_or_reason.endswith("are expected"):
            problems.note("comment_lines", f"{file.name}:{line}")
        else:
            _reject(text, line, row_or_reason, records.block.line_end, file, problems)
    lines = np.array([line for line, _ in rows], dtype=np.int64)
    head, relation, tail = zip(*(row for _, row in rows), strict=True) if rows else ((), (), ())
    return LabelBatch((pa.array(head, pa.utf8()), pa.array(relation, pa.utf8()), pa.array(tail, pa.utf8())), lines)


def _rows_within(text: bytes, layout: Layout, file: SourceFile) -> list[list[str]]:
    """Parse a line as rows that end with a carriage return, unlike the other lines; empty if that fails."""
    rows = [_checked_row(part, layout, file) for part in text.split(b"\r") if part]
    sound = [row for row in rows if not isinstance(row, str)]
    return sound if len(sound) == len(rows) else []


def _reject(text: bytes, line: int, reason: str, line_end: bytes, file: SourceFile, problems: Problems) -> None:
    """Reject all lines of a record."""
    hint = NAME_ENCODING if reason.startswith("bytes that are not") else ""
    for place, part in enumerate(text.split(line_end)):
        line_reason = f"part of the record that begins in line {line}: {reason}" if place else reason
        problems.reject(file.name, line + place, line_reason, part.removesuffix(b"\r"), hint)


def _checked_row(text: bytes, layout: Layout, file: SourceFile) -> list[str] | str:
    """Return head, relation and tail of a record, or the reason why it is rejected."""
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        decoded = text.decode("utf-8", "surrogateescape")  # unread columns may hold any bytes
        start = error.start
    row = layout.fields(decoded)
    if row is None:
        return "broken quoting"
    if len(row) != layout.columns:
        shown = shown_delimiter(layout.delimiter)
        return f"{len(row)} column{'s' * (len(row) != 1)} (delimiter {shown}) where {layout.columns} are expected"
    labels = [row[column] for column in layout.order]
    if not decoded.isascii() and any("\udc80" <= character <= "\udcff" for label in labels for character in label):
        return undecodable(start, file)
    return labels if all(labels) else "empty label"


def _without_header(batch: LabelBatch, layout: Layout, file: SourceFile, problems: Problems) -> LabelBatch:
    """Drop repetitions of the header from a batch, as in concatenated files."""
    if not layout.names:
        return batch
    names = [layout.names[column] for column in layout.order]
    is_header = pc.equal(batch.columns[1], names[1])
    if not pc.any(is_header).as_py():
        return batch
    for place in (0, 2):
        is_header = pc.and_(is_header, pc.equal(batch.columns[place], names[place]))
    repeated = is_header.to_numpy(zero_copy_only=False)
    if repeated.any():
        problems.note("header_lines", f"{file.name}:{batch.lines[repeated.argmax()]}", int(repeated.sum()))
        head, relation, tail = (column.filter(pc.invert(is_header)) for column in batch.columns)
        batch = LabelBatch((head, relation, tail), batch.lines[~repeated])
    return batch
