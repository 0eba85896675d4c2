"""Reader of RDF documents with pyoxigraph: Turtle, TriG, RDF/XML, N3, JSON-LD; streamed, except JSON-LD.

Labels are formed as in ``distkg.data.readers.ntriples``. The graph of a quad is ignored. Blank nodes keep their names
in the document; nameless ones, such as ``[ … ]``, are numbered by file, ``_:train.ttl-1``, so that equal files make
equal stores. Positions are triple numbers instead of lines, since a line may hold several triples or a part of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyoxigraph

from distkg.data.errors import IngestError
from distkg.data.readers.ntriples import LiteralCount, Row, parser_reason, term_label
from distkg.data.readers.problems import Problems
from distkg.data.readers.sources import SourceFile
from distkg.data.readers.text_blocks import LabelBatch, read_pieces

FORMATS = {
    "ttl": pyoxigraph.RdfFormat.TURTLE,
    "trig": pyoxigraph.RdfFormat.TRIG,
    "rdf": pyoxigraph.RdfFormat.RDF_XML,
    "n3": pyoxigraph.RdfFormat.N3,
    "jsonld": pyoxigraph.RdfFormat.JSON_LD,
}
SHOWN = {"ttl": "Turtle", "trig": "TriG", "rdf": "RDF/XML", "n3": "N3", "jsonld": "JSON-LD"}
BY_STATEMENT = ("ttl", "trig")
"""Formats in which the parser finds the next statement after an error; in others it would misread the rest."""

BATCH_ROWS = 1 << 16
KEPT_TEXT = 1 << 20
LONGEST_DOCTYPE, LONGEST_ENTITY = 1 << 20, 1 << 10
_ENTITY = re.compile(rb"<!ENTITY\s+(%?)\s*([^\s\"'>]+)\s*(?:\"([^\"]*)\"|'([^']*)'|[^>]*)", re.DOTALL)
_DECLARATION = re.compile(rb"""^\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")
# Names that the parser generates: 128 random bits without leading zeros (of 200,000 one had 27 digits, none fewer).
_NAMELESS = re.compile(r"_:[a-f][0-9a-f]{19,31}")


def read_rdf_document(file: SourceFile, problems: Problems) -> Iterator[LabelBatch]:
    """Stream triples from an RDF document.

    In Turtle and TriG, a statement with an error is rejected from the error on. In other formats an error raises, even
    with ``on_error="skip"``.

    Raises:
        IngestError: a syntax error after which the parser cannot continue, or XML entities that expand to others.
    """
    stream = _Stream(file)
    parser = pyoxigraph.parse(stream, format=FORMATS[file.format])  # type: ignore[arg-type]
    literals, terms = LiteralCount(file, problems), _TermLabels(file)
    rows: list[Row] = []
    done = 0
    while True:
        try:
            quad = next(parser, None)
        except SyntaxError as error:
            _rejected(error, stream, file, problems)
            continue
        except Exception:
            if stream.error is not None:
                raise stream.error from None
            raise
        if stream.error is not None:
            raise stream.error
        if quad is not None and (row := terms.row(quad)):
            rows.append(row)
        if rows and (quad is None or len(rows) == BATCH_ROWS):
            yield literals.passing(_batch(rows, done))
            done += len(rows)
            rows = []
        if quad is None:
            break
    literals.close()
    terms.close(problems)


class _TermLabels:
    """Labels of the terms of one document."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._numbers: dict[str, int] = {}
        self._formulas: set[str] = set()
        self._within = 0

    def row(self, quad: pyoxigraph.Quad) -> Row | None:
        """Return the labels of a fact; None for N3 statements in or about formulas, which are not facts."""
        if self._file.format == "n3":
            graph = quad.graph_name
            if not isinstance(graph, pyoxigraph.DefaultGraph):
                self._formulas.add(str(graph))
            if not isinstance(graph, pyoxigraph.DefaultGraph) or {str(quad.subject), str(quad.object)} & self._formulas:
                self._within += 1
                return None
        return self._label(quad.subject), self._label(quad.predicate), self._label(quad.object)

    def close(self, problems: Problems) -> None:
        """Count the statements in or about formulas."""
        problems.note("formulas_left_out", self._file.name, self._within)

    def _label(self, term: object) -> str:
        label = term_label(term)
        if isinstance(term, pyoxigraph.BlankNode) and _NAMELESS.fullmatch(label):
            number = self._numbers.setdefault(label, len(self._numbers) + 1)
            return f"_:{self._file.name}-{number}"
        return label


class _Stream:
    """File-like object for the parser; keeps the latest text for messages."""

    def __init__(self, file: SourceFile) -> None:
        self._file = _as_declared(file) if file.format == "rdf" else file
        self._pieces = read_pieces(self._file)
        self._kept, self._first_line = b"", 1
        self._rest = b""
        self.error: IngestError | None = None
        if file.format == "rdf":
            self._rest = self._head()

    def read(self, size: int = -1) -> bytes:
        """Read at most ``size`` bytes; empty at the end, and after an error, which is kept in ``error``."""
        if not self._rest:
            try:
                self._rest = next(self._pieces, b"")
                if self._file.format == "rdf" and b"<!ENTITY" in self._kept[-8:] + self._rest:
                    raise IngestError(
                        f"{self._file.name}: XML entities must be declared in the first {LONGEST_DOCTYPE:,} bytes"
                    )
            except IngestError as error:
                self.error = error
                return b""
        piece, self._rest = self._rest[:size], self._rest[size:]
        self._keep(piece)
        return piece

    def line(self, number: int) -> bytes:
        """Return the text of a line if it is still kept, else empty."""
        lines = self._kept.split(b"\n")
        place = number - self._first_line
        return lines[place] if 0 <= place < len(lines) else b""

    def _keep(self, piece: bytes) -> None:
        self._kept += piece
        if len(self._kept) > 2 * KEPT_TEXT:
            dropped, _, self._kept = self._kept[:-KEPT_TEXT].rpartition(b"\n")[0], b"", self._kept
            self._kept = self._kept[len(dropped) + 1 :]
            self._first_line += dropped.count(b"\n") + 1

    def _head(self) -> bytes:
        """Read the beginning of an XML document and check that its entities do not expand to others."""
        head = b""
        for piece in self._pieces:
            head += piece
            if len(head) >= LONGEST_DOCTYPE:
                break
        for _, name, *values in _ENTITY.findall(head):
            value = b"".join(values)
            if len(value) > LONGEST_ENTITY or b"&" in value.replace(b"&#", b"").replace(b"&amp;", b""):
                raise IngestError(
                    f"{self._file.name}: entity {name.decode('utf-8', 'replace')!r} is made of other entities or is "
                    f"longer than {LONGEST_ENTITY:,} bytes; such documents can grow without bound and are not read"
                )
        return _DECLARATION.sub(b'<?xml version="1.0"', head, count=1) if _DECLARATION.match(head) else head


def _as_declared(file: SourceFile) -> SourceFile:
    """Return the file with the encoding of its XML declaration."""
    declared = _DECLARATION.match(next(read_pieces(file), b""))
    if declared is None or file.options.encoding:
        return file
    name = declared.group(1).decode()
    try:
        "".encode(name)
    except LookupError:
        raise IngestError(
            f"{file.name}: the XML declaration names the unknown encoding {name!r}; give another with --encoding"
        ) from None
    return replace(file, options=replace(file.options, encoding=name))


def _rejected(error: SyntaxError, stream: _Stream, file: SourceFile, problems: Problems) -> None:
    """Reject a statement.

    Raises:
        IngestError: if ``on_error`` is ``fail``, or the parser cannot continue after the error.
    """
    if stream.error is not None:
        raise stream.error
    first, last = error.lineno, error.end_lineno or error.lineno
    if error.args[1:] and isinstance(error.args[1], tuple):
        first, last = error.args[1][1], error.args[1][4] or error.args[1][1]
    reason = f"not {SHOWN[file.format]}: {parser_reason(error)}"
    recovers = file.format in BY_STATEMENT and first is not None and (first == last or not _at_end(error))
    if not recovers:
        where = f"{file.name}:{first}" if first else file.name
        raise IngestError(
            f"{where}: {reason}. The parser cannot continue after this error, so nothing is read. Correct it, or "
            "convert the file to N-Triples, in which bad lines can be skipped"
        )
    assert first is not None
    for line in range(first, (last or first) + 1):
        problems.reject(file.name, line, reason, stream.line(line))


def _at_end(error: SyntaxError) -> bool:
    return "Unexpected end" in str(error.args[0]) or "UTF-8" in str(error.args[0])


def _batch(rows: list[Row], done: int) -> LabelBatch:
    head, relation, tail = zip(*rows, strict=True)
    columns = pa.array(head, pa.utf8()), pa.array(relation, pa.utf8()), pa.array(tail, pa.utf8())
    return LabelBatch(columns, np.arange(done + 1, done + len(rows) + 1, dtype=np.int64))
