"""Read queries by label from a TSV file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from distkg.data.local_path import local_path
from distkg.data.store import Store, StoreError
from distkg.printable import from_printable

DIRECTIONS = ("forward", "inverse")


class QueryFileError(ValueError):
    """A file of queries that cannot be used; the message names file and line."""


def read_queries(path: str | Path, store: Store) -> np.ndarray:
    """Queries int64 [q, 2] (anchor, relation in [0, 2R)) of lines ``anchor<TAB>relation[<TAB>direction]``.

    Labels are taken as they stand, or with the escapes of ``distkg.printable``; there is no header. Direction is
    ``forward`` (default: which tails?) or ``inverse`` (which heads?); all lines have it or none.

    Raises:
        QueryFileError: the file is empty, not UTF-8, a line has another number of columns, or a label or
            direction is unknown.
    """
    columns = _read_columns(local_path(path, "queries", "file"))
    anchor = _ids(columns[0], store.entity_labels(), path, store.entity_id)
    relation = _ids(columns[1], store.relation_labels(), path, store.relation_id)
    if len(columns) == 3:
        relation = relation + store.num_relations * _ids(columns[2], pa.array(DIRECTIONS), path, _no_direction)
    return np.stack([anchor, relation], 1)


def _read_columns(path: Path) -> list[pa.ChunkedArray]:
    names = [f"column {i + 1}" for i in range(_count_columns(path))]
    invalid: list[pyarrow.csv.InvalidRow] = []

    def refuse(row: pyarrow.csv.InvalidRow) -> str:
        invalid.append(row)
        return "error"

    parsing = pyarrow.csv.ParseOptions(
        delimiter="\t", quote_char=False, ignore_empty_lines=False, invalid_row_handler=refuse
    )
    reading = pyarrow.csv.ReadOptions(column_names=names, use_threads=False)  # threads would lose line numbers
    converting = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.large_string()))
    try:
        table = pyarrow.csv.read_csv(path, reading, parsing, converting)
    except pa.ArrowInvalid as error:
        raise QueryFileError(_explain_invalid(path, invalid) or f"{path}: {error}") from None
    return table.columns


def _explain_invalid(path: Path, rows: list[pyarrow.csv.InvalidRow]) -> str:
    if not rows:
        return ""
    row = rows[0]
    return (
        f"{path}:{row.number}: columns found: {row.actual_columns}, in the first line: {row.expected_columns}. "
        "Write anchor<TAB>relation, or a third column forward|inverse on every line"
    )


def _count_columns(path: Path) -> int:
    with path.open("rb") as file:
        first = file.readline()
    columns = first.count(b"\t") + 1
    if columns not in (2, 3):
        what = f"its first line has {columns} column{'s' * (columns > 1)}" if first else "it is empty"
        raise QueryFileError(f"{path}:1: {what}. Write anchor<TAB>relation[<TAB>forward|inverse] on each line")
    return columns


def _ids(column: pa.ChunkedArray, labels: pa.Array, path: str | Path, explain) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Positions of a column's labels among ``labels``: int64 [q]; ``explain(label)`` raises for one that is absent."""
    found = pc.index_in(column.cast(labels.type), value_set=labels)
    if pc.any(pc.match_substring(column, "\\")).as_py():
        found = _with_escapes(column, found, labels, path)
    if found.null_count:
        line = pc.index(pc.is_null(found), True).as_py()
        try:
            explain(column[line].as_py())
        except StoreError as error:
            raise QueryFileError(f"{path}:{line + 1}: {error}") from None
    return found.to_numpy().astype(np.int64)


def _with_escapes(column: pa.ChunkedArray, found: pa.ChunkedArray, labels: pa.Array, path: str | Path) -> pa.Array:
    """``found``, and where it is null the positions of labels that are written with escapes, as predictions are.

    Raises:
        QueryFileError: a text is a label as it stands, and another one when its escapes are taken back.
    """
    texts = [from_printable(text) for text in column.to_pylist()]
    unescaped = pc.index_in(pa.array(texts, labels.type), value_set=labels)
    found = found.combine_chunks()
    twice = pc.and_(pc.is_valid(found), pc.and_(pc.is_valid(unescaped), pc.not_equal(found, unescaped)))
    if (line := pc.index(twice, True).as_py()) >= 0:
        raise QueryFileError(
            f"{path}:{line + 1}: {column[line].as_py()} is the label of two: as it stands, and with its escapes read "
            "as characters. Ask about them in Python, by their ids"
        )
    return pc.coalesce(found, unescaped)


def _no_direction(label: str) -> None:
    raise StoreError(f"direction {label!r} is neither forward nor inverse")
