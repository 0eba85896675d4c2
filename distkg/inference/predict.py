"""Link prediction: the best answers to queries, with labels; known facts are excluded or marked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distkg.data.storage.atomic_file import check_replaceable, replaced_file
from distkg.data.storage.local_path import local_path
from distkg.data.store.graph_store import Store
from distkg.data.store.known_answers import Known, KnownAnswers
from distkg.embedding.model import Model
from distkg.evaluation.filtered_triples import parts_with_known_answers
from distkg.evaluation.topk import TopAnswers, TopK, top_answers
from distkg.graph.csr import expanded_ranges
from distkg.inference.queries import read_queries
from distkg.inference.untrained import untrained_warnings
from distkg.printable import printable

_ANSWERS_PER_WRITE = 1 << 20


class OutputError(ValueError):
    """Error of a prediction file that cannot be written; the message says why."""


@dataclass(frozen=True)
class Prediction:
    """One predicted answer.

    Attributes:
        rank: from 1, among the predicted answers.
        entity: id.
        label: label of the entity.
        score: higher is better; comparable within one model only.
        known: whether it is a fact of the store, in any split; None if that was not looked up.
    """

    rank: int
    entity: int
    label: str
    score: float
    known: bool | None


def predict(
    best: TopK,
    store: Store,
    anchors: Sequence[int] | np.ndarray,
    relations: Sequence[int] | np.ndarray,
    top: int = 10,
    known: Known = "exclude",
) -> list[list[Prediction]]:
    """Return the best answers to queries, best first. Collective; every rank gets the result.

    Args:
        best: the function that finds the best answers, such as that of ``best_of_model``.
        anchors: entity ids [q].
        relations: [q] in [0, 2R): r predicts tails of (anchor, r), r + R predicts heads of (·, r, anchor).
        top: answers per query; fewer if fewer entities remain.
        known: ``exclude`` or ``mark`` the facts of the store (train, valid and test), or ``keep`` them without lookup.

    Returns:
        One list per query.

    Raises:
        ValueError: an id is out of range, or ``top`` is below 1.
        ScoreError: a score is NaN or infinite.
    """
    queries = np.stack([np.asarray(anchors, np.int64), np.asarray(relations, np.int64)], 1)
    _refuse_strangers(queries, store)
    answers, is_known = _answer(best, store, queries, top=top, known=known)
    lists: list[list[Prediction]] = [[] for _ in queries]
    query, column = np.nonzero(answers.entities >= 0)
    entities = answers.entities[query, column]
    for place, (q, c, label) in enumerate(zip(query, column, store.entity_labels_of(entities), strict=True)):
        fact = None if is_known is None else bool(is_known[q, c])
        score = float(answers.scores[q, c])
        lists[q].append(Prediction(int(c) + 1, int(entities[place]), label, score, fact))
    return lists


def predict_file(
    best: TopK,
    store: Store,
    queries: str | Path,
    output: str | Path,
    top: int = 10,
    known: Known = "exclude",
    *,
    writes: bool = True,
    warn: Callable[[str], None] = lambda warning: None,
) -> int:
    """Answer the queries of a TSV file into a TSV or Parquet file. Collective.

    Args:
        best: the function that finds the best answers, such as that of ``best_of_model``.
        queries: lines ``anchor<TAB>relation`` or ``anchor<TAB>relation<TAB>direction`` of labels, without a
            header; direction is ``forward`` (predict tails) or ``inverse`` (predict heads).
        output: ``.tsv`` or ``.parquet``; columns anchor, relation, direction, rank, entity, score and, unless
            ``known`` is ``keep``, known. The file appears when it is complete. TSV has no quotes, as `distkg prepare`
            and ``queries`` read it; control, bidirectional and invisible characters of labels are written as escapes
            (``distkg.printable``), which ``queries`` reads and `distkg prepare` does not.
        writes: whether this process writes the file.
        warn: called with a sentence for each reason why answers may be meaningless.

    Returns:
        The number of answers written.

    Raises:
        QueryFileError: names file and line.
        OutputError: the output has another ending, or cannot be written there.
        ValueError: ``top`` is below 1.
        ScoreError: a score is NaN or infinite.
    """
    output = local_path(output, "output", "file")
    check_output(output)
    query_ids = read_queries(queries, store)
    for warning in untrained_warnings(store, query_ids[:, 0], query_ids[:, 1]):
        warn(warning)
    step = max(1, _ANSWERS_PER_WRITE // max(top, 1))
    parts = (query_ids[low : low + step] for low in range(0, len(query_ids), step))
    tables = (_table(store, part, *_answer(best, store, part, top=top, known=known)) for part in parts)
    if writes:
        return _write(tables, output, warn)
    return sum(len(table) for table in tables)


def best_of_model(model: Model, batch_size: int = 256, memory_mb: int = 256) -> TopK:
    """Return the function that finds the best answers of an embedding model, for ``predict``."""
    return partial(top_answers, model, batch_size=batch_size, memory_mb=memory_mb)


def _answer(
    best: TopK, store: Store, queries: np.ndarray, *, top: int, known: Known
) -> tuple[TopAnswers, np.ndarray | None]:
    """Return the best answers and the mask [q, k] of those that are known; the mask is None with ``known="keep"``."""
    if known == "keep":
        return best(queries, top, None), None
    parts, masks = list[TopAnswers](), list[np.ndarray]()
    for part, facts in parts_with_known_answers(store, queries, lambda queries: queries):
        answers = best(part, top, facts if known == "exclude" else None)
        parts.append(answers)
        masks.append(_are_known(part, answers.entities, facts, store.num_entities))
    entities, scores = (np.concatenate([getattr(part, name) for part in parts]) for name in ("entities", "scores"))
    return TopAnswers(entities, scores), np.concatenate(masks)


def _are_known(queries: np.ndarray, entities: np.ndarray, facts: KnownAnswers, num_entities: int) -> np.ndarray:
    """Return the mask of predicted entities [q, k] that are facts: bool [q, k]."""
    starts, ends = facts.rows(queries[:, 0], queries[:, 1])
    row, position = expanded_ranges(starts, ends)
    pairs = row * num_entities + facts.answers[position]
    return np.isin(np.arange(len(queries))[:, None] * num_entities + entities, pairs) & (entities >= 0)


def _refuse_strangers(queries: np.ndarray, store: Store) -> None:
    limits = {"anchor": store.num_entities, "relation": 2 * store.num_relations}
    for column, (name, limit) in zip(queries.T, limits.items(), strict=True):
        outside = (column < 0) | (column >= limit)
        if outside.any():
            raise ValueError(
                f"{name} {column[outside][0]} is not an id of the store: ids are from 0 to {limit - 1}"
                + (" (inverse relations are r + R)" if name == "relation" else "")
            )


def check_output(output: Path) -> None:
    """Refuse a file to which predictions cannot be written, before anything is computed.

    Raises:
        OutputError: its name does not end in ``.tsv`` or ``.parquet``, or its folder does not exist or is not writable.
        NotAFileError: it is a folder, device, pipe or socket.
    """
    if output.suffix not in (".tsv", ".parquet"):
        raise OutputError(
            f"{output}: predictions are written as .tsv or .parquet; use a file name with one of these endings"
        )
    check_replaceable(output)
    if not output.parent.is_dir():
        raise OutputError(f"{output}: there is no folder {output.parent}; create it, or name another file")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{output}: folder {output.parent} is not writable; name another file")


def _table(store: Store, queries: np.ndarray, answers: TopAnswers, known: np.ndarray | None) -> pa.Table:
    """Return a table with one row per answer, with labels."""
    query, column = np.nonzero(answers.entities >= 0)
    anchor, relation = queries[query].T
    inverse = relation >= store.num_relations
    columns = {
        "anchor": store.entity_labels().take(pa.array(anchor)),
        "relation": store.relation_labels().take(pa.array(relation % store.num_relations)),
        "direction": pa.array(np.where(inverse, "inverse", "forward"), pa.string()),
        "rank": pa.array(column + 1, pa.int32()),
        "entity": store.entity_labels().take(pa.array(answers.entities[query, column])),
        "score": pa.array(answers.scores[query, column], pa.float32()),
    }
    if known is not None:
        columns["known"] = pa.array(known[query, column])
    return pa.table(columns)


def _write(tables: Iterator[pa.Table], output: Path, warn: Callable[[str], None]) -> int:
    """Write tables one after the other to a file that gets its final name when it is complete."""
    writer, rows = None, 0
    with replaced_file(output) as unfinished:
        try:
            for table in tables:
                writer = writer or _writer(unfinished, output.suffix, table.schema)
                writer.write_table(table)
                rows += len(table)
        finally:
            if writer:
                writer.close()
    if isinstance(writer, TsvWriter) and writer.escaped:
        warn(
            "labels with control, bidirectional or invisible characters are written with escapes such as \\x09: "
            "--queries reads these escapes, `distkg prepare` does not. A .parquet file keeps labels unchanged"
        )
    return rows


def _writer(path: Path, suffix: str, schema: pa.Schema) -> pq.ParquetWriter | TsvWriter:
    return pq.ParquetWriter(path, schema) if suffix == ".parquet" else TsvWriter(path, schema)


class TsvWriter:
    """Writer of tables in the TSV format that distkg reads: a line of column names, no quotes, one row per line.

    Attributes:
        escaped: whether a label held characters that TSV cannot hold and that were escaped.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.escaped = False
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self._file.write("\t".join(schema.names) + "\n")

    def write_table(self, table: pa.Table) -> None:
        columns = [self._as_text(column) for column in table.columns]
        lines = pc.binary_join_element_wise(*columns, pa.scalar("\t", pa.large_string())).to_pylist()
        self._file.writelines(f"{line}\n" for line in lines)

    def close(self) -> None:
        self._file.close()

    def _as_text(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return a column as text, with labels escaped by ``printable``, which changes few labels."""
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return column.cast(pa.large_string())
        labels = column.combine_chunks().dictionary_encode()
        texts = labels.dictionary.to_pylist()
        printable_texts = [printable(label) for label in texts]
        self.escaped |= printable_texts != texts
        return pa.chunked_array([pa.array(printable_texts, pa.large_string()).take(labels.indices)])
