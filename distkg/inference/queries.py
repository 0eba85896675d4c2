"""Reading of queries by label from a TSV file, or from a file of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distkg.data.errors import IngestError
from distkg.data.readers.text_files import read_lines, text_file
from distkg.data.storage.local_path import local_path
from distkg.data.store.graph_store import Store, StoreError
from distkg.printable import from_printable

DIRECTIONS = ("forward", "inverse")
QUERY_COLUMNS = ["anchor", "relation", "direction"]
"""Columns of a prediction file that make up a query."""

EXPECTED = "Write anchor<TAB>relation[<TAB>forward|inverse] on each line"


class QueryFileError(ValueError):
    """Error of a query file that cannot be used; the message names file and line."""


def read_queries(path: str | Path, store: Store) -> np.ndarray:
    """Read queries int64 [q, 2] (anchor, relation in [0, 2R)) from lines ``anchor<TAB>relation[<TAB>direction]``.

    Labels are read unchanged, or with the escapes of ``distkg.printable``. Direction is ``forward`` (default, predict
    tails) or ``inverse`` (predict heads); all lines have it or none. A file of predictions, TSV or Parquet, is read by
    its columns: each of its queries once, in the order of first occurrence.

    Raises:
        QueryFileError: the file is missing, empty, damaged or not UTF-8, a line has another number of columns, or a
            label or direction is unknown.
    """
    path = local_path(path, "queries", "file")
    columns, lines = _read_parquet(path) if path.suffix == ".parquet" else _read_columns(path, store)
    anchor = _ids(columns[0], store.entity_labels(), path, lines, store.entity_id)
    relation = _ids(columns[1], store.relation_labels(), path, lines, store.relation_id)
    if len(columns) == 3:
        relation = relation + store.num_relations * _ids(columns[2], pa.array(DIRECTIONS), path, lines, _no_direction)
    return np.stack([anchor, relation], 1)


def _read_parquet(path: Path) -> tuple[list[pa.Array], Sequence[int]]:
    """Return the columns of predictions in Parquet, and the row of each query, counted from one."""
    try:
        with pq.ParquetFile(path) as parquet:
            names = [name for name in QUERY_COLUMNS if name in parquet.schema_arrow.names]
            if names[:2] != QUERY_COLUMNS[:2]:
                raise QueryFileError(
                    f"{path}: columns {' and '.join(QUERY_COLUMNS[:2])} are missing; it has "
                    f"{parquet.schema_arrow.names}"
                )
            table = parquet.read(columns=names)
            texts = [table[name].cast(pa.large_utf8()).combine_chunks() for name in names]
            for column in texts:
                column.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise QueryFileError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    if any(column.null_count for column in texts) or not len(texts[0]):
        raise QueryFileError(f"{path}: the file is empty, or a label in it is empty or null")
    return _each_query_once(texts, range(1, len(texts[0]) + 1))


def _read_columns(path: Path, store: Store) -> tuple[list[pa.Array], Sequence[int]]:
    """Return the columns of a file, and the line of each row; blank lines and comments (``#``, no tab) are skipped."""
    rows: list[list[str]] = []
    lines: list[int] = []
    named: list[int] = []
    columns = 0
    try:
        for line, text in read_lines(text_file(path, str(path))):
            fields = text.split("\t")
            if text.startswith("#") and len(fields) == 1:
                continue
            if not rows and not named and _is_header(fields, store):
                named = [fields.index(name) for name in QUERY_COLUMNS if name in fields]
                columns = len(fields)
                continue
            if named and len(fields) != columns:
                raise QueryFileError(f"{path}:{line}: columns found: {len(fields)}, in its header: {columns}")
            if named:
                fields = [fields[place] for place in named]
            _check_columns(path, line, len(fields), len(rows[0]) if rows else 0)
            rows.append(fields)
            lines.append(line)
    except IngestError as error:
        raise QueryFileError(str(error)) from None
    if not rows:
        raise QueryFileError(f"{path}:1: the file is empty. {EXPECTED}")
    texts = [pa.array(column, pa.large_utf8()) for column in zip(*rows, strict=True)]
    return _each_query_once(texts, lines) if named else (texts, lines)


def _is_header(fields: list[str], store: Store) -> bool:
    """Return True for a first line that names the columns of predictions and is no query of this store."""
    if fields[:2] != QUERY_COLUMNS[:2] or (len(fields) > 2 and fields[2] != QUERY_COLUMNS[2]):
        return False
    texts = zip(fields, (store.entity_labels(), store.relation_labels()), strict=False)
    return not all(pc.index(labels, pa.scalar(text, labels.type)).as_py() >= 0 for text, labels in texts)


def _each_query_once(columns: list[pa.Array], lines: Sequence[int]) -> tuple[list[pa.Array], Sequence[int]]:
    """Return the rows of predictions without those that repeat the query of an earlier row."""
    names = [str(place) for place in range(len(columns))]
    table = pa.table(dict(zip([*names, "row"], [*columns, pa.array(range(len(lines)))], strict=True)))
    first = table.group_by(names, use_threads=False).aggregate([("row", "min")])["row_min"].combine_chunks()
    first = first.take(pc.sort_indices(first))
    return [column.take(first) for column in columns], [lines[row] for row in first.to_pylist()]


def _check_columns(path: str | Path, line: int, columns: int, others: int) -> None:
    if others and columns != others:
        raise QueryFileError(
            f"{path}:{line}: columns found: {columns}, in the first line: {others}. "
            "Write anchor<TAB>relation, or a third column forward|inverse on every line"
        )
    if columns not in (2, 3):
        raise QueryFileError(f"{path}:{line}: its first line has {columns} column{'s' * (columns > 1)}. {EXPECTED}")


def _ids(  # type: ignore[no-untyped-def]
    column: pa.Array, labels: pa.Array, path: str | Path, lines: Sequence[int], explain
) -> np.ndarray:
    """Return the positions of a column's labels among ``labels``: int64 [q]; ``explain(label)`` raises for a missing
    label."""
    positions = pc.index_in(column.cast(labels.type), value_set=labels)
    if pc.any(pc.match_substring(column, "\\")).as_py():
        positions = _with_escapes(column, positions, labels, path, lines)
    if positions.null_count:
        row = pc.index(pc.is_null(positions), True).as_py()
        try:
            explain(column[row].as_py())
        except StoreError as error:
            raise QueryFileError(f"{path}:{lines[row]}: {error}") from None
    return positions.to_numpy().astype(np.int64)


def _with_escapes(
    column: pa.Array, found: pa.Array, labels: pa.Array, path: str | Path, lines: Sequence[int]
) -> pa.Array:
    """Return ``found``, with nulls replaced by the positions of labels that are written with escapes, as predictions
    are.

    Raises:
        QueryFileError: a text is one label unchanged, and another one with its escapes decoded.
    """
    texts = [from_printable(text) for text in column.to_pylist()]
    unescaped = pc.index_in(pa.array(texts, labels.type), value_set=labels)
    twice = pc.and_(pc.is_valid(found), pc.and_(pc.is_valid(unescaped), pc.not_equal(found, unescaped)))
    if (row := pc.index(twice, True).as_py()) >= 0:
        raise QueryFileError(
            f"{path}:{lines[row]}: {column[row].as_py()} is the label of two: unchanged, and with its escapes decoded. "
            "Query both in Python, by their ids"
        )
    return pc.coalesce(found, unescaped)


def _no_direction(label: str) -> None:
    raise StoreError(f"direction {label!r} is neither forward nor inverse")
