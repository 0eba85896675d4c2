from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_rejects import KeptRejects

from distkg.data import delimited
from distkg.data.blocks import Block, read_blocks
from distkg.data.delimited import Layout, column_order, detect_layout, read_delimited
from distkg.data.errors import IngestError
from distkg.data.location import Location
from distkg.data.problems import Problems
from distkg.data.sources import SourceFile

WriteSource = Callable[..., SourceFile]
MakeProblems = Callable[[str], Problems]
Rows = list[tuple[str, str, str]]


def read(file: SourceFile, problems: Problems) -> tuple[Rows, list[int]]:
    rows: Rows = []
    lines: list[int] = []
    for columns, numbers in read_delimited(file, problems):
        rows += zip(*(column.to_pylist() for column in columns), strict=True)
        lines += numbers.tolist()
    return rows, lines


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.tsv", "a b\tr\tc\nd\tr\te,f\n"),
        ("x.tsv.gz", "a b\tr\tc\nd\tr\te,f\n"),
        ("x.txt", "a b\tr\tc\r\nd\tr\te,f\r\n"),
        ("x.txt", "a b|r|c\nd|r|e,f"),
        ("x.txt", "a b;r;c\nd;r;e,f\n"),
        ("x.csv", 'a b,r,c\nd,r,"e,f"\n'),
        ("x.csv", "a b;r;c\nd;r;e,f\n".replace("e,f", "e_f")),
    ],
)
def test_any_delimiter_is_found(source: WriteSource, problems: MakeProblems, name: str, content: str) -> None:
    rows, lines = read(source(name, content), problems("fail"))
    last = "e_f" if "e_f" in content else "e,f"
    assert rows == [("a b", "r", "c"), ("d", "r", last)]
    assert lines == [1, 2]


def test_spaces_delimit_where_nothing_else_does(source: WriteSource, problems: MakeProblems) -> None:
    assert read(source("x.txt", "a r b\nb r c\n"), problems("fail"))[0] == [("a", "r", "b"), ("b", "r", "c")]


def test_quotes_are_part_of_labels_in_tsv(source: WriteSource, problems: MakeProblems) -> None:
    rows, _ = read(source("x.tsv", '"a"\tr\t"b\nNULL\tr\tNaN\n'), problems("fail"))
    assert rows == [('"a"', "r", '"b'), ("NULL", "r", "NaN")]


def test_a_header_names_the_columns(source: WriteSource, problems: MakeProblems) -> None:
    kept = problems("fail")
    rows, lines = read(source("x.csv", "Subject,Object,Predicate\na,b,r\n"), kept)
    assert rows == [("a", "r", "b")]
    assert lines == [2]
    assert kept.counts == {"header_lines": 1}
    assert kept.examples == {"header_lines": "x.csv:1"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"a\tb", r"2 columns \(delimiter tab\) where 3 are expected"),
        (b"a", "1 column "),
        (b"a\tb\tc\td", "4 columns"),
        (b"a\t\tc", "empty label"),
        (b"a\tb\t\xff\xfe", r"not UTF-8 \(byte 5 of the line\)"),
    ],
)
def test_a_bad_line_is_an_error_that_names_it(
    source: WriteSource, problems: MakeProblems, line: bytes, reason: str
) -> None:
    file = source("x.tsv", b"a\tr\tb\nb\tr\tc\n" + line + b"\nc\tr\td\n")
    with pytest.raises(IngestError, match=rf"x\.tsv:3: .*{reason}.*--on-error skip"):
        read(file, problems("fail"))


def test_broken_quoting_in_csv_is_an_error(source: WriteSource, problems: MakeProblems) -> None:
    with pytest.raises(IngestError, match=r"x\.csv:2: broken quoting"):
        read(source("x.csv", 'a,r,b\na,r,"b\nc",r,d\n'), problems("fail"))


def test_skipped_lines_are_written_with_file_line_and_reason(
    source: WriteSource, problems: MakeProblems, rejects: KeptRejects
) -> None:
    kept = problems("skip")
    file = source("x.tsv", b"a\tr\tb\nbad\n\nb\tr\tc\nx\ty\\\t\xff\nc\tr\td\n")
    rows, lines = read(file, kept)
    kept.close()
    assert rows == [("a", "r", "b"), ("b", "r", "c"), ("c", "r", "d")]
    assert lines == [1, 4, 6]
    assert kept.counts == {"rejected_lines": 2, "blank_lines": 1}
    assert kept.examples["blank_lines"] == "x.tsv:3"
    assert rejects.text.splitlines() == [
        "file\tline\treason\ttext",
        "x.tsv\t2\t1 column (delimiter tab) where 3 are expected\tbad",
        "x.tsv\t5\tbytes that are not UTF-8 (byte 6 of the line)\tx\\ty\\\\\\t\\\\xff",
    ]


def test_a_lone_carriage_return_is_no_line_end(source: WriteSource, problems: MakeProblems) -> None:
    rows, lines = read(source("x.tsv", "a\rb\tr\tc\nd\tr\te\n"), problems("fail"))
    assert rows == [("a\rb", "r", "c"), ("d", "r", "e")]
    assert lines == [1, 2]


LABEL = st.text(st.characters(exclude_characters="\t\n\r\ufeff", exclude_categories=("Cs",)), min_size=1, max_size=5)


@given(
    rows=st.lists(st.one_of(st.tuples(LABEL, LABEL, LABEL), st.just(None)), min_size=1, max_size=15),
    block_bytes=st.integers(1, 60),
)
def test_good_lines_come_back_whatever_stands_between_them(
    rows: list[tuple[str, str, str] | None], block_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("delimited") / "x.tsv"
    rows = [("first", "relation", "line"), *rows]
    path.write_bytes("".join("\t".join(row) + "\n" if row else "only\ttwo\n" for row in rows).encode())
    kept = Problems("skip", KeptRejects)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "read_blocks", partial(read_blocks, block_bytes=block_bytes))
        found, lines = read(SourceFile(Location.of(str(path)), "tsv", "x.tsv"), kept)
    assert found == [row for row in rows if row]
    assert lines == [number for number, row in enumerate(rows, 1) if row]
    assert kept.counts["rejected_lines"] == rows.count(None)


def test_the_usual_delimiter_wins_wherever_it_occurs() -> None:
    assert detect_layout(Block(b"a b c\nd e\tf\n", 1), "tsv") == Layout("\t", (0, 1, 2), False)
    assert detect_layout(Block(b"a b c\nd e f\n", 1), "tsv") == Layout(" ", (0, 1, 2), False)
    assert detect_layout(Block(b"nothing\n", 1), "csv") == Layout(",", (0, 1, 2), False)


def test_columns_are_found_by_their_names() -> None:
    assert column_order(["weight", "Tail", "HEAD", "relation"]) == (2, 3, 1)
    assert column_order(["a", "b", "c"]) is None
