"""Delimited text (TSV, CSV and kin), one triple per line.

A block without faults goes through pyarrow's CSV parser whole. A block with any fault is read again line by
line, so that each fault is reported with its line and reason.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv

from distkg.data.blocks import Block, LabelBatch, read_blocks
from distkg.data.problems import Problems
from distkg.data.sources import SourceFile

DELIMITERS = ("\t", ",", ";", "|", " ")
QUOTED = (",", ";")
SAMPLE_LINES = 50
HEADERS = (
    ("head", "relation", "tail"),
    ("subject", "predicate", "object"),
    ("source", "relation", "target"),
    ("h", "r", "t"),
    ("s", "p", "o"),
)


class Layout(NamedTuple):
    """How lines become triples.

    Attributes:
        delimiter: one character.
        order: which columns hold head, relation and tail.
        header: whether line 1 names the columns.
    """

    delimiter: str
    order: tuple[int, int, int]
    header: bool

    @property
    def quoted(self) -> bool:
        """Quotes have a meaning in CSV; in TSV they are part of the label, as in the published benchmarks."""
        return self.delimiter in QUOTED


def read_delimited(file: SourceFile, problems: Problems) -> Iterator[LabelBatch]:
    """Stream triples from delimited text; the delimiter is found from the first lines.

    Lines of other than three columns, with an empty label or bad UTF-8 are rejected; blank lines are counted.
    """
    layout: Layout | None = None
    for block in read_blocks(file):
        if layout is None:
            layout = detect_layout(block, file.extension)
            if layout.header:
                problems.note("header_lines", f"{file.name}:1")
                block = Block(block.text.partition(b"\n")[2], 2)
        if block.text:
            yield _parse(block, layout) or _parse_by_line(block, layout, file.name, problems)


def detect_layout(block: Block, extension: str) -> Layout:
    """Delimiter, column order and header from the first lines of a file."""
    sample = [text.decode("utf-8", "replace") for _, text in islice(block.lines(), SAMPLE_LINES)]
    delimiter = _detect_delimiter(sample, "," if extension == "csv" else "\t")
    first = [field.strip() for field in _fields(sample[0], delimiter) or []]
    order = column_order(first) if len(first) == 3 else None
    return Layout(delimiter, order or (0, 1, 2), order is not None)


def column_order(names: list[str]) -> tuple[int, int, int] | None:
    """Where head, relation and tail are among columns named in a usual way; None where they are not."""
    lowered = [name.lower() for name in names]
    for head, relation, tail in HEADERS:
        if {head, relation, tail} <= set(lowered):
            return lowered.index(head), lowered.index(relation), lowered.index(tail)
    return None


def _detect_delimiter(sample: list[str], expected: str) -> str:
    """The extension's delimiter wherever it occurs; otherwise the one that gives most lines three columns."""
    if any(expected in line for line in sample):
        return expected
    scores = {d: sum(len(_fields(line, d) or ()) == 3 for line in sample) for d in DELIMITERS}
    best = max(scores, key=lambda delimiter: scores[delimiter])
    return best if scores[best] else expected


def _fields(line: str, delimiter: str) -> list[str] | None:
    """Columns of a line; None where its quoting is broken."""
    if delimiter not in QUOTED:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        return None


def _parse(block: Block, layout: Layout) -> LabelBatch | None:
    """The block as labels, or None where any line of it has a fault."""
    if block.text.count(b"\r") != block.text.count(b"\r\n"):
        return None  # the parser would take a lone carriage return for a line end
    names = ["0", "1", "2"]
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(block.text),
            arrow_csv.ReadOptions(column_names=names, block_size=len(block.text) + 1, use_threads=False),
            arrow_csv.ParseOptions(
                delimiter=layout.delimiter, quote_char='"' if layout.quoted else False, ignore_empty_lines=False
            ),
            arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.utf8()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid:
        return None
    head, relation, tail = (table.column(column).combine_chunks() for column in layout.order)
    if table.num_rows != block.line_count or any(has_empty(column) for column in (head, relation, tail)):
        return None
    lines = np.arange(block.first_line, block.first_line + table.num_rows, dtype=np.int64)
    return LabelBatch((head, relation, tail), lines)


def has_empty(labels: pa.Array) -> bool:
    """Whether any label of a utf8 array is empty."""
    offsets = np.frombuffer(labels.buffers()[1], dtype=np.int32)
    offsets = offsets[labels.offset : labels.offset + len(labels) + 1]
    return bool((np.diff(offsets) == 0).any())


def _parse_by_line(block: Block, layout: Layout, name: str, problems: Problems) -> LabelBatch:
    rows: list[list[str]] = []
    lines: list[int] = []
    for line, text in block.lines():
        if not text:
            problems.note("blank_lines", f"{name}:{line}")
            continue
        row = _checked_row(text, layout)
        if isinstance(row, str):
            problems.reject(name, line, row, text)
        else:
            rows.append([row[column] for column in layout.order])
            lines.append(line)
    head, relation, tail = zip(*rows, strict=True) if rows else ((), (), ())
    columns = pa.array(head, pa.utf8()), pa.array(relation, pa.utf8()), pa.array(tail, pa.utf8())
    return LabelBatch(columns, np.array(lines, dtype=np.int64))


def _checked_row(text: bytes, layout: Layout) -> list[str] | str:
    """The three columns of a line, or what is wrong with it."""
    try:
        row = _fields(text.decode("utf-8"), layout.delimiter)
    except UnicodeDecodeError as error:
        return f"bytes that are not UTF-8 (byte {error.start + 1} of the line)"
    if row is None:
        return "broken quoting"
    if len(row) != 3:
        shown = {"\t": "tab", " ": "space"}.get(layout.delimiter, layout.delimiter)
        return f"{len(row)} column{'s' * (len(row) != 1)} (delimiter {shown}) where 3 are expected"
    if not all(row):
        return "empty label"
    return row
