"""Layout of delimited text files: delimiter, columns and header, detected from the first lines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from distkg.data.errors import IngestError
from distkg.data.readers.headers import Ambiguous, Order, clean_name, columns_by_name
from distkg.data.readers.records import split_fields, split_records
from distkg.data.readers.sources import ReadOptions
from distkg.data.readers.text_blocks import Block

DELIMITERS = ("\t", ",", ";", "|", " ")
QUOTED = (",", ";")
SAMPLE_LINES, SAMPLE_BYTES = 300, 1 << 18
TOLERANCE = 0.1
AS_WRITTEN: Order = (0, 1, 2)
NAMED = {"\t": "tab", " ": "space", ",": "comma", ";": "semicolon", "|": "pipe"}
_SEPARATOR_LINE = re.compile(r'^"?sep=(.)"?$', re.IGNORECASE)


class Layout(NamedTuple):
    """Layout of the lines of a delimited text file.

    Attributes:
        delimiter: one character.
        order: columns of head, relation and tail, from 0.
        header: True if a line names the columns.
        columns: number of columns per line.
        names: names of the columns, if there is a header.
        preface: number of lines before the first triple, including the header.
        comments: number of comments in the preface.
        blank: number of blank lines in the preface.
        notes: sentences for the user about the detected layout.
        left_out: names of columns that are not read, unless the user chose the columns.
    """

    delimiter: str
    order: Order
    header: bool
    columns: int = 3
    names: tuple[str, ...] = ()
    preface: int = 0
    comments: int = 0
    blank: int = 0
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def quoted(self) -> bool:
        """True if quotes delimit fields, as in CSV; in TSV they belong to the label, as in published benchmarks."""
        return self.delimiter in QUOTED

    def fields(self, text: str) -> list[str] | None:
        """Split a record into columns; None if its quoting is broken."""
        return split_fields(text, self.delimiter) if self.quoted else text.split(self.delimiter)


class _Record(NamedTuple):
    """Record of the sample: text, number of lines and fields (None if its quoting is broken)."""

    text: str
    lines: int
    fields: list[str] | None


def detect_layout(block: Block, extension: str, options: ReadOptions | None = None, name: str = "") -> Layout:
    """Detect delimiter, columns and header from the first lines of a file.

    Args:
        name: name of the file in messages.

    Raises:
        IngestError: a requested column is missing, or there are not three columns and none were chosen.
    """
    options = options or ReadOptions()
    sample = _sample(block)
    expected = "," if extension == "csv" else "\t"
    separator = _SEPARATOR_LINE.match(sample.partition("\n")[0].rstrip("\r"))
    delimiter = options.delimiter or (separator and separator.group(1)) or _detect_delimiter(sample, expected)
    records = _records(sample, delimiter)
    columns = _usual_columns(records) or 3
    skipped = _preface(records, columns, bool(separator))
    first = records[skipped].fields if skipped < len(records) else None
    base = Layout(delimiter, AS_WRITTEN, False, columns)
    if first is None:
        return base
    count = skipped > 0 and _is_count(records[skipped - 1], columns)
    if count and not options.columns:
        raise IngestError(
            f"{name}: the first line is a count, as in OpenKE files, whose columns are head, tail, relation. "
            "Use --columns 1,3,2 (the count is skipped; the ids become labels)"
        )
    names = ["", *first] if len(first) == columns - 1 else first  # R's write.table does not name the row names
    layout = _with_columns(base, names, records[skipped + 1 :], options, name)
    if layout.columns != 3 and not layout.header and not options.columns:
        raise IngestError(_other_columns(name, layout, first))
    preface_records = records[: skipped + layout.header]
    return layout._replace(
        preface=sum(record.lines for record in preface_records),
        comments=sum(record.text.startswith("#") for record in records[:skipped]),
        blank=sum(not record.text.strip("\r") for record in records[:skipped]),
        notes=(*(["the first line, a count, is skipped"] if count else []), *layout.notes),
    )


def shown_delimiter(delimiter: str) -> str:
    """Return a delimiter as messages show it."""
    return {"\t": "tab", " ": "space"}.get(delimiter, delimiter)


def choose_columns(wanted: Sequence[str], names: Sequence[str], count: int, name: str) -> Order:
    """Return the positions (from 0) of columns that are given by name or by number (from 1).

    Args:
        names: names of the columns; for a file without a header, the fields of its first line.
        count: number of columns.
        name: name of the file in messages.

    Raises:
        IngestError: no such column (the message lists all columns), or a column given twice.
    """
    head, relation, tail = (_place(column, names, count, name) for column in wanted)
    if len({head, relation, tail}) < 3:
        raise IngestError(f"{name}: --columns {','.join(wanted)} names a column twice; give three different columns")
    return head, relation, tail


def _place(wanted: str, names: Sequence[str], count: int, name: str) -> int:
    if wanted.isdecimal():
        if 1 <= int(wanted) <= count:
            return int(wanted) - 1
        raise IngestError(f"{name} has no column {wanted}: its {count} columns are numbered from 1")
    stripped = [field.strip(" \r\"'") for field in names]
    for form in (str, str.lower, clean_name):
        matches = [place for place, field in enumerate(stripped) if form(field) == form(wanted)]
        if len(matches) == 1:
            return matches[0]
    shown = ", ".join(field or f"(column {place}, without a name)" for place, field in enumerate(stripped, 1))
    raise IngestError(f"{name} has no column {wanted!r}. Its columns: {shown}. Give their names, or numbers from 1")


def _with_columns(base: Layout, names: list[str], others: list[_Record], options: ReadOptions, name: str) -> Layout:
    """Complete the layout with its columns, given the fields of its first record."""
    if options.columns:
        return _with_given_columns(base, names, options, name)
    detected = columns_by_name(names) if options.header is not False and len(names) == base.columns else None
    if isinstance(detected, Ambiguous):
        if base.columns == 3:
            detected = None
        else:
            raise IngestError(
                f"{name}: its header has several columns for {detected.role} ({', '.join(detected.names)}). Say "
                f"which to read: --columns HEAD,RELATION,TAIL, of {', '.join(names)}; other columns are left out"
            )
    if detected is not None and options.header is None and _recurs(names, detected, others):
        detected = None  # labels that happen to equal column names
    if detected is None:
        if options.header and base.columns == 3:
            return base._replace(header=True)
        if options.header and base.columns != 3:
            raise IngestError(_other_columns(name, base, names))
        return base
    left_out = tuple(
        names[place].strip() or f"column {place + 1}" for place in range(base.columns) if place not in detected
    )
    notes = [] if detected == AS_WRITTEN else [_ordered(names, detected)]
    return base._replace(order=detected, header=True, names=tuple(names), notes=tuple(notes), left_out=left_out)


def _with_given_columns(base: Layout, names: list[str], options: ReadOptions, name: str) -> Layout:
    names = [*names, *[""] * (base.columns - len(names))]
    order = choose_columns(options.columns, names, base.columns, name)
    by_name = not all(column.isdecimal() for column in options.columns)
    if by_name and options.header is False:
        raise IngestError(f"{name}: --columns by name needs a header; with --no-header give numbers, from 1")
    chosen = [names[place] for place in order]
    header = by_name or (columns_by_name(chosen) == AS_WRITTEN if options.header is None else options.header)
    left_out = [names[place] if header else str(place + 1) for place in range(base.columns) if place not in order]
    notes = [_ordered(names, order) if header else f"columns {', '.join(str(place + 1) for place in order)} are read"]
    if left_out:
        notes[0] += f"; left out: {', '.join(left_out)}"
    known = tuple(names) if header else ()
    return base._replace(order=order, header=header, names=known, notes=tuple(notes))


def _ordered(names: Sequence[str], order: Order) -> str:
    shown = [f"{role} = {names[place].strip()!r} (column {place + 1})" for role, place in
             zip(("head", "relation", "tail"), order, strict=True)]  # fmt: skip
    return f"columns by its header: {', '.join(shown)}"


def _other_columns(name: str, layout: Layout, first: Sequence[str]) -> str:
    count = layout.columns
    shown = ", ".join(repr(field[:40]) for field in first[:12]) + (" …" if len(first) > 12 else "")
    error = f"{name}: its lines have {count} column{'s' * (count != 1)} (delimiter {shown_delimiter(layout.delimiter)})"
    if count < 3:
        return (
            f"{error} where head, relation and tail are expected; the first has {shown}. If another character stands "
            "between columns, name it with --delimiter"
        )
    return (
        f"{error} where 3 are expected; the first has {shown}. Say which columns are head, relation and tail: "
        "--columns 1,2,3 (numbers from 1, or names of a header); other columns are left out"
    )


def _sample(block: Block) -> str:
    """Return the first lines of a block, with ``\\n`` as line end."""
    text = block.text[:SAMPLE_BYTES]
    lines = text.split(block.line_end)[: SAMPLE_LINES + 1]
    if len(lines) > 1 and (len(lines) > SAMPLE_LINES or len(text) < len(block.text) or not lines[-1]):
        lines.pop()
    return b"\n".join(lines).decode("utf-8", "replace")


def _records(sample: str, delimiter: str) -> list[_Record]:
    if delimiter in QUOTED and '"' in sample:
        texts = split_records(sample, delimiter)
        return [_Record(text, lines, split_fields(text.rstrip("\r"), delimiter)) for text, lines in texts]
    return [_Record(text, 1, text.rstrip("\r").split(delimiter)) for text in sample.split("\n")]


def _usual_columns(records: list[_Record]) -> int:
    """Return the most frequent number of columns of non-blank lines, preferring three or more; 0 without lines."""
    counts = _column_counts(records)
    many = {count: times for count, times in counts.items() if count >= 3}
    if not many and (len(counts) > 1 or counts.total() == 1):
        return 3  # a few lines are wrong, not the file
    return max(many or counts, key=lambda count: ((many or counts)[count], count == 3), default=0)


def _column_counts(records: list[_Record]) -> Counter[int]:
    return Counter(len(record.fields or ()) for record in records if record.text.strip("\r"))


def _detect_delimiter(sample: str, expected: str) -> str:
    """Detect the delimiter that gives most lines the same number of columns, three or more.

    Ties (within ``TOLERANCE``) are broken in this order: the first line becomes a known header; a tab, which is rare in
    labels; three columns; the delimiter of the file's extension. Spaces are used only if no other delimiter fits.
    """
    scores: dict[str, tuple[float, int, bool]] = {}
    for delimiter in DELIMITERS:
        records = _records(sample, delimiter)
        counts = _column_counts(records)
        columns = _usual_columns(records)
        if columns >= 3 and counts[columns]:
            first = next((record.fields or [] for record in records if record.text.strip("\r")), [])
            scores[delimiter] = counts[columns] / counts.total(), columns, columns_by_name(first) is not None
    others = max((share for delimiter, (share, _, _) in scores.items() if delimiter != " "), default=0.0)
    if others >= 0.5 or (" " in scores and scores[" "][0] <= 0.5):
        scores.pop(" ", None)
    if not scores:
        return expected
    best = max(share for share, _, _ in scores.values())

    def rank(delimiter: str) -> tuple[bool, bool, bool, bool]:
        _, columns, header = scores[delimiter]
        return header, delimiter == "\t", columns == 3, delimiter == expected

    return max((d for d in scores if scores[d][0] >= best - TOLERANCE), key=rank)


def _preface(records: list[_Record], columns: int, separator: bool) -> int:
    """Count the records before the header or first triple: blank lines, comments, ``sep=``, OpenKE's count."""
    for place, record in enumerate(records):
        fields = record.fields or []
        comment = record.text.startswith("#") and len(fields) != columns
        if not (not record.text.strip("\r") or comment or (separator and not place) or _is_count(record, columns)):
            return place
        if _is_count(record, columns):
            return place + 1
    return len(records)


def _is_count(record: _Record, columns: int) -> bool:
    return columns == 3 and len(record.fields or ()) == 1 and record.text.strip().isdecimal()


def _recurs(names: list[str], order: Order, others: list[_Record]) -> bool:
    """Return True if a header name recurs in its column, in a line other than a repetition of the header."""
    return any(
        record.fields != names and any(record.fields[place] == names[place] for place in order)
        for record in others
        if record.fields is not None and len(record.fields) == len(names)
    )
