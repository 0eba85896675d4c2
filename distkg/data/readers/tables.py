"""Reader of triples in Parquet: the columns requested, else those named head/relation/tail (or
subject/predicate/object …), else the first three."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distkg.data.errors import IngestError
from distkg.data.readers.delimited import has_empty
from distkg.data.readers.headers import Ambiguous, columns_by_name
from distkg.data.readers.line_layout import choose_columns
from distkg.data.readers.problems import Problems
from distkg.data.readers.sources import SourceFile
from distkg.data.readers.text_blocks import LabelBatch

BATCH_ROWS = 1 << 17
PANDAS_INDEX = "__index_level_0__"


def read_parquet(file: SourceFile, problems: Problems) -> Iterator[LabelBatch]:
    """Stream triples from Parquet; lines are row numbers from 1.

    Rows with a null, empty or non-UTF-8 label are rejected.

    Raises:
        IngestError: not Parquet, damaged, fewer than three columns, or columns that cannot be labels.
    """
    row = 1
    try:
        with pq.ParquetFile(file.location.filesystem.open_input_file(file.location.path)) as table:
            names = _columns(table.schema_arrow, file, problems)
            for batch in table.iter_batches(BATCH_ROWS, columns=names):
                columns = [_as_labels(batch.column(name), file.name, name) for name in names]
                yield _checked(columns, row, file.name, problems)
                row += batch.num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise IngestError(
            f"{file.name}:{row}: cannot be read as Parquet from this row on ({error}); fetch it again"
        ) from None


def _columns(schema: pa.Schema, file: SourceFile, problems: Problems) -> list[str]:
    names = schema.names
    if len(names) < 3:
        raise IngestError(f"{file.name}: {len(names)} column(s) ({', '.join(names)}) where 3 are expected")
    if file.options.columns:
        order = choose_columns(file.options.columns, names, len(names), file.name)
        return [names[column] for column in order]
    detected = columns_by_name(names)
    if isinstance(detected, Ambiguous):
        raise IngestError(
            f"{file.name} has several columns for {detected.role} ({', '.join(detected.names)}). Say which to read: "
            f"--columns HEAD,RELATION,TAIL, of {', '.join(names)}; other columns are left out"
        )
    chosen = [names[column] for column in detected or (0, 1, 2)]
    left_out = [name for name in names if name not in chosen and name != PANDAS_INDEX]
    problems.note("columns_left_out", f"{file.name}: {', '.join(left_out)}", len(left_out))
    return chosen


def _as_labels(column: pa.Array, file: str, name: str) -> pa.Array:
    """Cast a column to binary, since strings in Parquet may hold any bytes; integers become decimal strings."""
    try:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_integer(column.type):
            column = column.cast(pa.utf8())
        return column.cast(pa.binary())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise IngestError(
            f"{file}: column {name!r} holds {column.type}, which cannot be labels; give strings or integers"
        ) from None


def _checked(columns: list[pa.Array], first_row: int, file: str, problems: Problems) -> LabelBatch:
    lines = np.arange(first_row, first_row + len(columns[0]), dtype=np.int64)
    try:
        head, relation, tail = (column.cast(pa.utf8()) for column in columns)
        if not any(column.null_count or has_empty(column) for column in (head, relation, tail)):
            return LabelBatch((head, relation, tail), lines)
    except pa.ArrowInvalid:
        pass  # some label is not UTF-8; checked row by row below
    good = np.array([_good(row, columns, first_row, file, problems) for row in range(len(lines))], dtype=bool)
    head, relation, tail = (pc.filter(column, pa.array(good)).cast(pa.utf8()) for column in columns)
    return LabelBatch((head, relation, tail), lines[good])


def _good(row: int, columns: list[pa.Array], first_row: int, file: str, problems: Problems) -> bool:
    labels = [column[row].as_py() for column in columns]
    if not all(labels):
        problems.reject(file, first_row + row, "empty label", repr(labels))
        return False
    try:
        for label in labels:
            label.decode("utf-8")
    except UnicodeDecodeError:
        problems.reject(file, first_row + row, "bytes that are not UTF-8", repr(labels))
        return False
    return True
