"""Reader of N-Triples and N-Quads, block by block, with pyoxigraph.

IRIs become labels without their angle brackets; literals and blank nodes keep their N-Triples form
(``"Ada"@en``, ``_:b0``), so that no two terms share a label. Language tags are lower-cased, since RDF 1.1 compares them
without case. Equal blank node names in two files of one graph are the same entity. The graph of a quad is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyoxigraph

from distkg.data.readers.problems import Problems
from distkg.data.readers.sources import SourceFile
from distkg.data.readers.text_blocks import Block, LabelBatch, read_blocks

Row = tuple[str, str, str]
BLOCK_BYTES = 1 << 22
FORMATS = {"nt": pyoxigraph.RdfFormat.N_TRIPLES, "nq": pyoxigraph.RdfFormat.N_QUADS}
SHOWN = {"nt": "N-Triples", "nq": "N-Quads"}
_PLACE = re.compile(
    r"^Parser error (?:at line \d+ (?:column (\d+)|between columns (\d+) and (\d+))"
    r"|between line \d+ column \d+ and line \d+ column \d+): "
)


def read_ntriples(file: SourceFile, problems: Problems) -> Iterator[LabelBatch]:
    """Stream triples from N-Triples or N-Quads; lines with syntax errors are rejected, comments skipped."""
    literals = LiteralCount(file, problems)
    for block in read_blocks(file, BLOCK_BYTES):
        yield literals.passing(_parse(block, file) or _parse_by_line(block, file, problems))
    literals.close()


class LiteralCount:
    """Filter of facts whose object is a literal: counts these facts and drops them if the options say so."""

    def __init__(self, file: SourceFile, problems: Problems) -> None:
        self._file, self._problems = file, problems
        self._kept = 0

    def passing(self, batch: LabelBatch) -> LabelBatch:
        """Return the batch, without facts with literals if the options drop them."""
        literal = pc.starts_with(batch.columns[2], '"')
        count = pc.sum(literal).as_py() or 0
        if not count:
            return batch
        if self._file.options.literals == "keep":
            self._kept += count
            return batch
        mask = literal.to_numpy(zero_copy_only=False)
        where = f"{self._file.name}:{self._file.unit}{batch.lines[mask.argmax()]}"
        self._problems.note("literals_dropped", where, count)
        head, relation, tail = (column.filter(pc.invert(literal)) for column in batch.columns)
        return LabelBatch((head, relation, tail), batch.lines[~mask])

    def close(self) -> None:
        """Note the number of facts with literals that were kept."""
        if self._kept:
            self._problems.tell(
                f"{self._file.name}: {self._kept:,} facts have a literal as their tail; use --literals drop to leave "
                "these out"
            )


def term_label(term: object) -> str:
    """Return the label of an RDF term."""
    return term.value if isinstance(term, pyoxigraph.NamedNode) else str(term)


def parser_reason(error: SyntaxError) -> str:
    """Return the message of a parser error with its columns, without the parser's own line numbers."""
    message = str(error.args[0])
    place = _PLACE.match(message)
    if place is None:
        return message
    one, first, last = place.groups()
    shown = f" (column {one})" if one else f" (columns {first} to {last})" if first else ""
    return message[place.end() :] + shown


def _rows(text: bytes, format: str) -> list[Row]:
    quads = pyoxigraph.parse(text, format=FORMATS[format])
    return [(term_label(quad.subject), term_label(quad.predicate), term_label(quad.object)) for quad in quads]


def _parse(block: Block, file: SourceFile) -> LabelBatch | None:
    """Parse a block at once; None unless every line is one triple."""
    try:
        rows = _rows(block.text, file.format)
    except SyntaxError:
        return None
    if len(rows) != block.line_count:
        return None
    return _batch(rows, np.arange(block.first_line, block.first_line + len(rows), dtype=np.int64))


def _parse_by_line(block: Block, file: SourceFile, problems: Problems) -> LabelBatch:
    rows: list[Row] = []
    lines: list[int] = []
    for line, text in block.lines():
        try:
            line_rows = _rows(text, file.format)
        except SyntaxError as error:
            problems.reject(file.name, line, f"not {SHOWN[file.format]}: {_reason(text, file.format, error)}", text)
            continue
        rows.extend(line_rows)
        lines.extend([line] * len(line_rows))
    return _batch(rows, np.array(lines, dtype=np.int64))


def _reason(text: bytes, format: str, error: SyntaxError) -> str:
    if format == "nt":
        try:
            if _rows(text, "nq"):
                return "a quad, which names a graph; read N-Quads with --format nq"
        except SyntaxError:
            pass
    return parser_reason(error)


def _batch(rows: list[Row], lines: np.ndarray) -> LabelBatch:
    head, relation, tail = zip(*rows, strict=True) if rows else ((), (), ())
    return LabelBatch((pa.array(head, pa.utf8()), pa.array(relation, pa.utf8()), pa.array(tail, pa.utf8())), lines)
