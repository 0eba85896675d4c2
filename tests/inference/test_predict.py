"""Predictions with labels, one by one and from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from distributed import run_ranks
from small_model import SmallModel

from distkg.data.prepare import prepare
from distkg.data.readers.sources import ReadOptions
from distkg.data.storage.atomic_file import NotAFileError
from distkg.data.store.graph_store import Store
from distkg.data.store.known_answers import Known, KnownAnswers
from distkg.evaluation import filtered_triples
from distkg.evaluation.topk import TopAnswers
from distkg.inference.predict import OutputError, check_output, predict, predict_file
from distkg.inference.predict import best_of_model as best_of
from distkg.inference.queries import QueryFileError, read_queries
from distkg.printable import printable
from distkg.sharding.ranks import Ranks

WORTH = {"anna": 1.0, "ben": 2.0, "carl": 3.0, "dora": 4.0, "emil": 5.0}


def people_model(store: Store, ranks: Ranks | None = None) -> SmallModel:
    """One float per person; forward queries like high ones, inverse queries low ones."""
    rows = torch.tensor([[WORTH[label]] for label in store.entity_labels().to_pylist()])
    return SmallModel(rows, torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]), ranks)


def ids(store: Store, anchor: str, relation: str, *, inverse: bool = False) -> tuple[list[int], list[int]]:
    return [store.entity_id(anchor)], [store.relation_id(relation) + inverse * store.num_relations]


def test_known_facts_of_every_split_are_left_out(store: Store) -> None:
    (answers,) = predict(best_of(people_model(store)), store, *ids(store, "anna", "likes"))
    # anna likes ben and carl (train) and dora (test).
    assert [(a.rank, a.label, a.score) for a in answers] == [(1, "emil", 5.0), (2, "anna", 1.0)]
    assert [a.entity for a in answers] == [store.entity_id("emil"), store.entity_id("anna")]
    assert [a.known for a in answers] == [False, False]


def test_known_facts_are_marked(store: Store) -> None:
    (answers,) = predict(best_of(people_model(store)), store, *ids(store, "anna", "likes"), top=3, known="mark")
    assert [(a.label, a.known) for a in answers] == [("emil", False), ("dora", True), ("carl", True)]


def test_known_facts_are_kept_without_a_look(store: Store) -> None:
    (answers,) = predict(best_of(people_model(store)), store, *ids(store, "anna", "likes"), top=2, known="keep")
    assert [(a.label, a.known) for a in answers] == [("emil", None), ("dora", None)]


@pytest.mark.parametrize("known", ["exclude", "mark"])
def test_queries_with_too_many_known_answers_are_answered_in_parts(
    store: Store, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = np.array([[entity, relation] for entity in range(5) for relation in range(4)])
    best, parts = best_of(people_model(store)), []

    def counted(queries: np.ndarray, top: int, hidden: KnownAnswers | None) -> TopAnswers:
        parts.append(len(queries))
        return best(queries, top, hidden)

    whole = predict(counted, store, *queries.T, top=5, known=known)
    assert parts == [20]
    for most, count in ((1, 16), (4, 6)):
        parts.clear()
        monkeypatch.setattr(filtered_triples, "HELD_AT_ONCE", most)
        assert predict(counted, store, *queries.T, top=5, known=known) == whole
        assert sum(parts) == 20
        assert len(parts) == count


def test_inverse_queries_ask_for_heads(store: Store) -> None:
    (answers,) = predict(best_of(people_model(store)), store, *ids(store, "ben", "likes", inverse=True), known="mark")
    # anna and emil like ben.
    assert [(a.label, a.known, a.score) for a in answers] == [
        ("anna", True, -2.0),
        ("ben", False, -4.0),
        ("carl", False, -6.0),
        ("dora", False, -8.0),
        ("emil", True, -10.0),
    ]


def test_answers_come_in_the_order_of_the_queries(store: Store) -> None:
    anchors = [store.entity_id(label) for label in ("emil", "anna")]
    relations = [store.relation_id(label) for label in ("knows", "likes")]
    first, second = predict(best_of(people_model(store)), store, anchors, relations, top=1)
    assert (first[0].label, second[0].label) == ("emil", "emil")
    assert (first[0].score, second[0].score) == (25.0, 5.0)


@pytest.mark.parametrize(
    ("anchor", "relation", "message"),
    [(5, 0, "anchor 5 is not an id of the store: ids are from 0 to 4"), (0, -1, "relation -1 .* from 0 to 3")],
)
def test_ids_outside_the_graph_are_refused(store: Store, anchor: int, relation: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(best_of(people_model(store)), store, [anchor], [relation])


def test_a_file_of_queries_becomes_a_table(store: Store, queries_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.tsv"
    written = predict_file(best_of(people_model(store)), store, queries_file, output, top=2)
    table = pyarrow.csv.read_csv(output, parse_options=pyarrow.csv.ParseOptions(delimiter="\t"))
    assert table.column_names == ["anchor", "relation", "direction", "rank", "entity", "score", "known"]
    assert written == len(table) == 6
    assert [tuple(row.values())[:6] for row in table.to_pylist()] == [
        ("anna", "likes", "forward", 1, "emil", 5.0),
        ("anna", "likes", "forward", 2, "anna", 1.0),
        ("anna", "likes", "inverse", 1, "anna", -1.0),
        ("anna", "likes", "inverse", 2, "ben", -2.0),
        ("emil", "knows", "forward", 1, "emil", 25.0),
        ("emil", "knows", "forward", 2, "dora", 20.0),
    ]
    assert list(tmp_path.glob(".*")) == []


def test_parquet_holds_the_same_as_tsv(store: Store, queries_file: Path, tmp_path: Path) -> None:
    model = people_model(store)
    predict_file(best_of(model), store, queries_file, tmp_path / "a.tsv", known="mark")
    predict_file(best_of(model), store, queries_file, tmp_path / "a.parquet", known="mark")
    tsv = pyarrow.csv.read_csv(tmp_path / "a.tsv", parse_options=pyarrow.csv.ParseOptions(delimiter="\t"))
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == tsv.to_pylist()
    assert len(tsv) == 15


ODD = ['say "hi"', '"quoted"', "it's", "comma, semicolon;", "Zürich", "back\\slash", " padded ", "#hash"]


def test_what_is_written_reads_back_as_queries_and_as_a_graph(tmp_path: Path) -> None:
    (tmp_path / "odd.tsv").write_text("".join(f'{label}\tnext "to"\t{ODD[0]}\n' for label in ODD))
    prepare(str(tmp_path / "odd.tsv"), str(tmp_path / "odd"), split=(1.0, 0.0, 0.0))
    store = Store.open(str(tmp_path / "odd"))
    model = SmallModel(torch.ones(len(ODD), 1), torch.ones(2, 1))
    (tmp_path / "q.tsv").write_text("".join(f'{label}\tnext "to"\n' for label in ODD))
    predict_file(best_of(model), store, tmp_path / "q.tsv", tmp_path / "p.tsv", top=len(ODD), known="keep")
    lines = [line.split("\t") for line in (tmp_path / "p.tsv").read_text().splitlines()]
    assert lines[0] == ["anchor", "relation", "direction", "rank", "entity", "score"]
    assert {line[0] for line in lines[1:]} == {line[4] for line in lines[1:]} == set(ODD)
    (tmp_path / "back.tsv").write_text("".join(f"{line[0]}\t{line[1]}\n" for line in lines[1 :: len(ODD)]))
    np.testing.assert_array_equal(read_queries(tmp_path / "back.tsv", store), read_queries(tmp_path / "q.tsv", store))
    (tmp_path / "chosen.tsv").write_text("".join(f"{line[0]}\t{line[1]}\t{line[4]}\n" for line in lines[1:]))
    prepare(str(tmp_path / "chosen.tsv"), str(tmp_path / "chosen"), split=(1.0, 0.0, 0.0))
    again = Store.open(str(tmp_path / "chosen"))
    assert set(again.entity_labels().to_pylist()) == set(ODD)
    assert again.relation_labels().to_pylist() == ['next "to"']


HOSTILE = ["tab\there", "line\nbreak", "\x1b[31mred", "\u202eturned", "C:\\x41", r"a\x09b", "plain"]


def hostile_store(folder: Path, labels: list[str]) -> Store:
    """Labels that no TSV can hold as they are, from Parquet."""
    pq.write_table(pa.table({"head": labels, "relation": ["r\t"] * len(labels), "tail": labels}), folder / "h.parquet")
    prepare(str(folder / "h.parquet"), str(folder / "hostile"), split=(1.0, 0.0, 0.0))
    return Store.open(str(folder / "hostile"))


def test_labels_that_tsv_cannot_hold_are_escaped_and_read_back(tmp_path: Path) -> None:
    store = hostile_store(tmp_path, HOSTILE)
    model = SmallModel(torch.ones(len(HOSTILE), 1), torch.ones(2, 1))
    answers = predict(best_of(model), store, range(len(HOSTILE)), [0] * len(HOSTILE), top=1, known="keep")
    assert len(answers) == len(HOSTILE)
    shown = [printable(label) for label in HOSTILE]
    (tmp_path / "q.tsv").write_text("".join(f"{label}\tr\\x09\n" for label in shown))
    asked = read_queries(tmp_path / "q.tsv", store)
    assert store.entity_labels_of(asked[:, 0]) == HOSTILE
    said: list[str] = []
    best = best_of(model)
    predict_file(best, store, tmp_path / "q.tsv", tmp_path / "p.tsv", top=1, known="keep", warn=said.append)
    assert said[0].startswith("labels with control, bidirectional or invisible characters are written with escapes")
    lines = [line.split("\t") for line in (tmp_path / "p.tsv").read_text().split("\n")[1:-1]]
    assert [line[0] for line in lines] == [
        r"tab\x09here",
        r"line\x0abreak",
        r"\x1b[31mred",
        r"\u202eturned",
        r"C:\x41",
        r"a\x5cx09b",
        "plain",
    ]
    assert {line[1] for line in lines} == {r"r\x09"}
    (tmp_path / "back.tsv").write_text("".join(f"{line[0]}\t{line[1]}\n" for line in lines))
    np.testing.assert_array_equal(read_queries(tmp_path / "back.tsv", store), asked)


def test_a_text_that_is_two_labels_is_refused(tmp_path: Path) -> None:
    store = hostile_store(tmp_path, ["a\tb", r"a\x09b"])
    (tmp_path / "q.tsv").write_text("a\\x09b\tr\\x09\n")
    with pytest.raises(QueryFileError, match=r"q\.tsv:1: a\\x09b is the label of two"):
        read_queries(tmp_path / "q.tsv", store)


def test_untrained_queries_of_a_file_are_said(store: Store, queries_file: Path, tmp_path: Path) -> None:
    said: list[str] = []
    model, queries = people_model(store), tmp_path / "q.tsv"
    best = best_of(model)
    predict_file(best, store, queries_file, tmp_path / "a.tsv", warn=said.append)
    assert said == []
    (tmp_path / "graph.tsv").write_text("a\tr\tb\n")
    (tmp_path / "test.tsv").write_text("a\tnever\tb\n")
    prepare(str(tmp_path / "graph.tsv"), str(tmp_path / "small"), test=str(tmp_path / "test.tsv"))
    small = Store.open(str(tmp_path / "small"))
    queries.write_text("a\tnever\na\tr\n")
    best = best_of(SmallModel(torch.ones(2, 1), torch.ones(4, 1)))
    predict_file(best, small, queries, tmp_path / "b.tsv", warn=said.append)
    assert said == [
        "relation 'never' occurs in no training fact, so the model has not learned it: the answers are meaningless"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("answers.csv", r"answers\.csv: predictions are written as \.tsv or \.parquet"),
        ("folder.tsv", r"folder\.tsv. is a folder: name a file"),
        ("missing/a.tsv", r"there is no folder .*missing; create it"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises((OutputError, NotAFileError), match=message):
        check_output(tmp_path / name)


def test_batches_of_a_file_follow_each_other(
    store: Store, queries_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = people_model(store)
    predict_file(best_of(model), store, queries_file, tmp_path / "once.tsv", top=2)
    monkeypatch.setattr("distkg.inference.predict._ANSWERS_PER_WRITE", 2)
    assert predict_file(best_of(model), store, queries_file, tmp_path / "thrice.tsv", top=2) == 6
    assert (tmp_path / "thrice.tsv").read_text() == (tmp_path / "once.tsv").read_text()


def answer_on(ranks: Ranks, address: str, queries: Path, output: Path) -> int:
    store = Store.open(address)
    return predict_file(
        best_of(people_model(store, ranks)), store, queries, output, top=3, known="keep", writes=ranks.first
    )


def test_ranks_write_one_file_together(store: Store, queries_file: Path, tmp_path: Path) -> None:
    answer_on(Ranks.single(), store.address, queries_file, tmp_path / "single.tsv")
    counts = run_ranks(2, answer_on, store.address, queries_file, tmp_path / "shared.tsv")
    assert counts == [9, 9]
    assert (tmp_path / "shared.tsv").read_text() == (tmp_path / "single.tsv").read_text()


def test_a_failed_prediction_leaves_the_file_as_it_was(store: Store, queries_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.tsv"
    output.write_text("of yesterday")
    model = people_model(store)
    model.entities.whole[2] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        predict_file(best_of(model), store, queries_file, output)
    assert output.read_text() == "of yesterday"


def test_other_formats_are_refused_before_work_begins(store: Store, queries_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"answers\.xlsx: predictions are written as \.tsv or \.parquet"):
        predict_file(best_of(people_model(store)), store, queries_file, tmp_path / "answers.xlsx")


def test_two_columns_ask_forward(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "q.tsv"
    path.write_text("emil\tknows\ncarl\tlikes")
    expected = [
        [store.entity_id("emil"), store.relation_id("knows")],
        [store.entity_id("carl"), store.relation_id("likes")],
    ]
    np.testing.assert_array_equal(read_queries(path, store), expected)


@pytest.mark.parametrize("ending", ["tsv", "parquet"])
def test_predictions_are_read_as_the_queries_that_they_answer(ending: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("emil\tknows\tforward\nanna\tlikes\tinverse\nemil\tknows\tinverse\n")
    answers, again = tmp_path / f"answers.{ending}", tmp_path / f"again.{ending}"
    predict_file(best_of(people_model(store)), store, tmp_path / "q.tsv", answers, top=3, known="keep")
    np.testing.assert_array_equal(read_queries(answers, store), read_queries(tmp_path / "q.tsv", store))
    predict_file(best_of(people_model(store)), store, answers, again, top=3, known="keep")
    assert again.read_bytes() == answers.read_bytes()


def test_names_of_columns_may_be_labels(tmp_path: Path) -> None:
    (tmp_path / "g.tsv").write_text("anchor\trelation\ttail\ntail\trelation\tanchor\n")
    prepare(str(tmp_path / "g.tsv"), str(tmp_path / "g"), ReadOptions(header=False), split=(1.0, 0.0, 0.0))
    (tmp_path / "q.tsv").write_text("anchor\trelation\ntail\trelation\n")
    assert len(read_queries(tmp_path / "q.tsv", Store.open(str(tmp_path / "g")))) == 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"head": ["anna"], "relation": ["likes"]}, "columns anchor and relation are missing; it has"),
        ({"anchor": ["anne"], "relation": ["likes"]}, "q.parquet:1: .*no entity labelled 'anne'"),
        ({"anchor": ["anna", None], "relation": ["likes", "likes"]}, "the file is empty, or a label in it is"),
        ({"anchor": [["anna"]], "relation": ["likes"]}, "cannot be read as Parquet"),
    ],
)
def test_bad_parquet_is_named(store: Store, tmp_path: Path, table: dict[str, list[Any]], message: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "q.parquet")
    with pytest.raises(QueryFileError, match=message):
        read_queries(tmp_path / "q.parquet", store)
    (tmp_path / "q.parquet").write_bytes(b"PAR1" * 4)
    with pytest.raises(QueryFileError, match="cannot be read as Parquet"):
        read_queries(tmp_path / "q.parquet", store)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"anchor\trelation\tdirection\trank\nanna\tlikes\tforward\n", "q.tsv:2: columns found: 3, in its header: 4"),
        (b"", "q.tsv:1: the file is empty"),
        (b"anna\n", "q.tsv:1: its first line has 1 column. Write anchor<TAB>relation"),
        (b"anna\tlikes\nanna\tlikes\tinverse\n", "q.tsv:2: columns found: 3, in the first line: 2"),
        (b"anna\tlikes\n\tlikes\n", "q.tsv:2: .*no entity labelled ''"),
        (b"# asked\n\nanna\tlikes\nanne\tlikes\n", "q.tsv:4: .*no entity labelled 'anne'"),
        (b"anna\tlikes\nanne\tlikes\n", "q.tsv:2: .*no entity labelled 'anne'. Close: 'anna'"),
        (b"anna\tlikes\tforward\nben\tlike\tforward\n", "q.tsv:2: .*no relation labelled 'like'"),
        (b"anna\tlikes\tbackward\n", "q.tsv:1: direction 'backward' is neither forward nor inverse"),
        (b"anna\tlikes\n\xff\tlikes\n", r"q.tsv:2: bytes that are not UTF-8 \(byte 1"),
    ],
)
def test_bad_lines_are_named(store: Store, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "q.tsv"
    path.write_bytes(content)
    with pytest.raises(QueryFileError, match=message):
        read_queries(path, store)
