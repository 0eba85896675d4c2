"""N-Triples through pyoxigraph, block by block.

IRIs become labels without their angle brackets; literals and blank nodes keep their N-Triples form
(``"Ada"@en``, ``_:b0``), so that no two terms share a label. Equal blank node names in two files of one graph
are the same entity.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyoxigraph

from distkg.data.blocks import Block, LabelBatch, read_blocks
from distkg.data.problems import Problems
from distkg.data.sources import SourceFile

Row = tuple[str, str, str]
BLOCK_BYTES = 1 << 22


def read_ntriples(file: SourceFile, problems: Problems) -> Iterator[LabelBatch]:
    """Stream triples from N-Triples; lines with syntax errors are rejected, comments passed over."""
    for block in read_blocks(file, BLOCK_BYTES):
        yield _parse(block) or _parse_by_line(block, file.name, problems)


def _rows(text: bytes) -> list[Row]:
    quads = pyoxigraph.parse(text, format=pyoxigraph.RdfFormat.N_TRIPLES)
    return [(_label(quad.subject), _label(quad.predicate), _label(quad.object)) for quad in quads]


def _label(term: object) -> str:
    return term.value if isinstance(term, pyoxigraph.NamedNode) else str(term)


def _parse(block: Block) -> LabelBatch | None:
    """The block as labels, or None where it is not one triple on each line."""
    try:
        rows = _rows(block.text)
    except SyntaxError:
        return None
    if len(rows) != block.line_count:
        return None
    return _batch(rows, np.arange(block.first_line, block.first_line + len(rows), dtype=np.int64))


def _parse_by_line(block: Block, name: str, problems: Problems) -> LabelBatch:
    rows: list[Row] = []
    lines: list[int] = []
    for line, text in block.lines():
        try:
            found = _rows(text)
        except SyntaxError as error:
            problems.reject(name, line, f"not N-Triples: {error.args[0]}", text)
            continue
        rows.extend(found)
        lines.extend([line] * len(found))
    return _batch(rows, np.array(lines, dtype=np.int64))


def _batch(rows: list[Row], lines: np.ndarray) -> LabelBatch:
    head, relation, tail = zip(*rows, strict=True) if rows else ((), (), ())
    return LabelBatch((pa.array(head, pa.utf8()), pa.array(relation, pa.utf8()), pa.array(tail, pa.utf8())), lines)
