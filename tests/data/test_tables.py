from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distkg.data.errors import IngestError
from distkg.data.readers import tables
from distkg.data.readers.problems import Problems
from distkg.data.readers.sources import DETECTED, SourceFile, find_sources, read_options
from distkg.data.readers.tables import read_parquet

MakeProblems = Callable[[str], Problems]
Rows = list[tuple[str, str, str]]


def write(path: Path, columns: dict[str, pa.Array]) -> SourceFile:
    pq.write_table(pa.table(columns), path)
    return find_sources(str(path), DETECTED)["train"]


def read(file: SourceFile, problems: Problems) -> tuple[Rows, list[int]]:
    rows: Rows = []
    lines: list[int] = []
    for columns, numbers in read_parquet(file, problems):
        rows += zip(*(column.to_pylist() for column in columns), strict=True)
        lines += numbers.tolist()
    return rows, lines


def test_named_columns_are_taken_in_any_order(tmp_path: Path, problems: MakeProblems) -> None:
    columns = {"weight": [0.5], "object": ["o"], "subject": ["s"], "predicate": ["p"]}
    file = write(tmp_path / "x.parquet", {name: pa.array(value) for name, value in columns.items()})
    assert read(file, problems("fail")) == ([("s", "p", "o")], [1])


def test_otherwise_the_first_three_columns_are(tmp_path: Path, problems: MakeProblems) -> None:
    columns = {
        "c0": pa.array(["a"]),
        "c1": pa.array(["r"]).dictionary_encode(),
        "c2": pa.array([7]),
        "c3": pa.array([1]),
    }
    file = write(tmp_path / "x.parquet", columns)
    assert read(file, problems("fail"))[0] == [("a", "r", "7")]


def test_rows_are_numbered_across_batches(
    tmp_path: Path, problems: MakeProblems, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 2)
    heads = pa.array(["a", "b", "", "d", "e"])
    file = write(tmp_path / "x.parquet", {"head": heads, "relation": pa.array(["r"] * 5), "tail": pa.array(["t"] * 5)})
    kept = problems("skip")
    rows, lines = read(file, kept)
    assert [row[0] for row in rows] == ["a", "b", "d", "e"]
    assert lines == [1, 2, 4, 5]
    assert kept.examples["rejected_lines"] == "x.parquet:3: empty label"


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (pa.array(["t", None]), r"x\.parquet:2: empty label"),
        (pa.array([b"t", b"\xff"], pa.binary()), r"x\.parquet:2: bytes that are not UTF-8"),
        (pa.array([["t"], ["u"]]), r"x\.parquet: column 'tail' holds list.*cannot be labels"),
    ],
)
def test_bad_labels_are_named(tmp_path: Path, problems: MakeProblems, tail: pa.Array, reason: str) -> None:
    file = write(tmp_path / "x.parquet", {"head": pa.array(["a", "b"]), "relation": pa.array(["r", "r"]), "tail": tail})
    with pytest.raises(IngestError, match=reason):
        read(file, problems("fail"))


def test_two_columns_are_too_few(tmp_path: Path, problems: MakeProblems) -> None:
    file = write(tmp_path / "x.parquet", {"a": pa.array(["x"]), "b": pa.array(["y"])})
    with pytest.raises(IngestError, match=r"x\.parquet: 2 column\(s\) \(a, b\) where 3 are expected"):
        read(file, problems("fail"))


@pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1 cut off"])
def test_other_files_are_refused(tmp_path: Path, problems: MakeProblems, content: bytes) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    with pytest.raises(IngestError, match=r"x\.parquet:1: cannot be read as Parquet"):
        read(find_sources(str(path), DETECTED)["train"], problems("fail"))


def test_columns_left_out_are_counted_and_chosen_ones_read(tmp_path: Path, problems: MakeProblems) -> None:
    columns = {"x_id": ["1"], "x_name": ["a"], "rel": ["r"], "y_id": ["2"], "y_name": ["b"]}
    write(tmp_path / "x.parquet", {name: pa.array(value) for name, value in columns.items()})

    def chosen(text: str) -> SourceFile:
        return find_sources(str(tmp_path / "x.parquet"), read_options(columns=text))["train"]

    kept = problems("fail")
    assert read(chosen("x_name,rel,y_name"), kept) == ([("a", "r", "b")], [1])
    assert not kept.counts
    assert read(chosen("1,3,4"), problems("fail"))[0] == [("1", "r", "2")]
    with pytest.raises(
        IngestError, match=r"x\.parquet has several columns for head and tail .*x_id, x_name, y_id, y_name"
    ):
        read(find_sources(str(tmp_path / "x.parquet"), DETECTED)["train"], problems("fail"))
    with pytest.raises(
        IngestError, match=r"x\.parquet has no column 'z'\. Its columns: x_id, x_name, rel, y_id, y_name"
    ):
        read(chosen("x_name,z,y_name"), problems("fail"))


def test_weights_are_not_left_out_in_silence(tmp_path: Path, problems: MakeProblems) -> None:
    columns = {"h": pa.array(["a"]), "r": pa.array(["r"]), "t": pa.array(["b"]), "weight": pa.array([0.5])}
    kept = problems("fail")
    read(write(tmp_path / "x.parquet", {**columns, "__index_level_0__": pa.array([0])}), kept)
    assert (kept.counts, kept.examples) == ({"columns_left_out": 1}, {"columns_left_out": "x.parquet: weight"})
