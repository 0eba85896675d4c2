from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_rejects import KeptRejects

from distkg.data.errors import IngestError
from distkg.data.readers import delimited
from distkg.data.readers import text_blocks as blocks
from distkg.data.readers.delimited import Layout, column_order, detect_layout, read_delimited
from distkg.data.readers.problems import Problems
from distkg.data.readers.sources import SourceFile
from distkg.data.readers.text_blocks import Block, read_blocks
from distkg.data.storage.location import Location

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
    with pytest.raises(IngestError, match=r"x\.csv:2: broken quoting: 'a,r,\"b\"x'\. Correct"):
        read(source("x.csv", 'a,r,b\na,r,"b"x\nc,r,d\n'), problems("fail"))


SEVERAL_LINES = 'a,says,"first\r\nsecond ""x"""\nb,says,c\n"d\n\n",knows,"e,f"\nb,knows,c\n'


@pytest.mark.parametrize("block_bytes", [1, 7, 20, 1 << 20])
def test_a_record_over_several_lines_is_one_triple(
    source: WriteSource, problems: MakeProblems, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block_bytes < 1 << 20:
        monkeypatch.setattr(delimited, "read_blocks", partial(read_blocks, block_bytes=block_bytes))
        monkeypatch.setattr(blocks, "PIECE_BYTES", 3)
    kept = problems("fail")
    rows, lines = read(source("x.csv", "b,knows,a\n" + SEVERAL_LINES), kept)
    assert rows == [
        ("b", "knows", "a"),
        ("a", "says", 'first\r\nsecond "x"'),
        ("b", "says", "c"),
        ("d\n\n", "knows", "e,f"),
        ("b", "knows", "c"),
    ]
    assert lines == [1, 2, 4, 5, 8]
    assert kept.counts == {"records_over_several_lines": 2}
    assert kept.examples == {"records_over_several_lines": "x.csv:2"}


def test_all_lines_of_a_broken_record_are_rejected(
    source: WriteSource, problems: MakeProblems, rejects: KeptRejects
) -> None:
    kept = problems("skip")
    rows, lines = read(source("x.csv", 'a,r,b\nc,r,"d\nd,r,"e"\nf,r,g\n"h\ni",r\nj,r,k\n'), kept)
    kept.close()
    assert rows == [("a", "r", "b"), ("f", "r", "g"), ("j", "r", "k")]
    assert lines == [1, 4, 7]
    assert rejects.text.splitlines()[1:] == [
        'x.csv\t2\tbroken quoting\tc,r,"d',
        'x.csv\t3\tpart of the record that begins in line 2: broken quoting\td,r,"e"',
        'x.csv\t5\t2 columns (delimiter ,) where 3 are expected\t"h',
        'x.csv\t6\tpart of the record that begins in line 5: 2 columns (delimiter ,) where 3 are expected\ti",r',
    ]


def test_a_quote_that_never_closes_costs_its_line_only(
    source: WriteSource, problems: MakeProblems, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'a,r,b\nc,r,"d\n' + "e,r,f\n" * 3
    kept = problems("skip")
    assert read(source("x.csv", text), kept)[1] == [1, 3, 4, 5]
    reason = "x.csv:2: broken quoting: a quote opens here and does not close"
    assert kept.examples["rejected_lines"] == f"{reason} before the end of the file"
    monkeypatch.setattr(delimited, "LONGEST_RECORD", 12)
    kept = problems("skip")
    # It closes four lines on, further away than any record may reach.
    assert read(source("x.csv", text + 'g,r,"h"\n'), kept)[1] == [1, 3, 4, 5, 6]
    assert kept.examples["rejected_lines"] == f"{reason} within 12 bytes"
    with pytest.raises(IngestError, match=r"x\.csv:2: broken quoting: a quote opens here"):
        read(source("x.csv", text), problems("fail"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.tsv", "a\tr\tb\rc\tr\td\r", [1, 2]),
        ("x.csv", 'a,r,"b"\rc,r,d', [1, 2]),
        ("x.tsv", "a\tr\tb\r\nc\tr\td\r\n", [1, 2]),
        ("x.tsv", "a\tr\tb\nc\tr\td\r\ne\tr\tf\rg\tr\th\n", [1, 2, 3, 3]),
    ],
)
def test_lines_end_as_in_any_system(
    source: WriteSource, problems: MakeProblems, name: str, content: str, expected: list[int]
) -> None:
    rows, lines = read(source(name, content), problems("fail"))
    assert rows == [("a", "r", "b"), ("c", "r", "d"), ("e", "r", "f"), ("g", "r", "h")][: len(expected)]
    assert lines == expected


def test_other_separators_of_unicode_end_no_line(source: WriteSource, problems: MakeProblems) -> None:
    rows, _ = read(source("x.tsv", "a\u2028b\tr\x0b\tc\x1c\x85\n"), problems("fail"))
    assert rows == [("a\u2028b", "r\x0b", "c\x1c\x85")]


def test_a_header_may_stand_anywhere_and_again(source: WriteSource, problems: MakeProblems) -> None:
    kept = problems("fail")
    file = source(
        "x.csv", "# made by hand\n\ntail,weight,relation,head\nb,0.5,r,a\ntail,weight,relation,head\nc,1,r,b\n"
    )
    assert read(file, kept) == ([("a", "r", "b"), ("b", "r", "c")], [4, 6])
    assert kept.counts == {"comment_lines": 1, "blank_lines": 1, "header_lines": 2, "columns_left_out": 1}
    assert kept.examples["columns_left_out"] == "x.csv: weight"
    assert kept.notes == [
        "x.csv: columns by its header: head = 'head' (column 4), relation = 'relation' (column 3), "
        "tail = 'tail' (column 1)"
    ]


def test_a_first_line_that_may_be_a_header_is_told(source: WriteSource, problems: MakeProblems) -> None:
    def told(content: str, **options: object) -> list[tuple[str, int, tuple[str, str, str]]]:
        kept = problems("skip")
        read(source("x.tsv", content, **options), kept)
        return kept.possible_headers

    facts = "a\tr\tb\nb\tr\tc\n"
    assert told("drug\teffect\tgene\n" + facts) == [("x.tsv", 1, ("drug", "effect", "gene"))]
    assert told("a\tis\tbig\n" + facts) == []
    assert told("x\tr\ty\n" + facts) == []
    assert told("drug\teffect\tgene\n" + facts, header=False) == []
    assert told("only\ttwo\n" + facts) == []
    assert told("a\tr\tb\n") == []


def test_columns_are_chosen_by_name_or_number(source: WriteSource, problems: MakeProblems) -> None:
    text = "id,x_name,y_name,kind\n1,a,b,r\n2,b,c,s\n"
    expected = [("a", "r", "b"), ("b", "s", "c")]
    assert read(source("x.csv", text, columns="x_name,kind,Y Name"), problems("fail")) == (expected, [2, 3])
    assert read(source("x.csv", text, columns="2,4,3", header=True), problems("fail")) == (expected, [2, 3])
    kept = problems("fail")
    assert read(source("x.csv", text, columns="2,4,3"), kept)[0][0] == ("x_name", "kind", "y_name")
    assert kept.notes == ["x.csv: columns 2, 4, 3 are read; left out: 1"]
    with pytest.raises(IngestError, match=r"x\.csv has no column 'z'\. Its columns: id, x_name, y_name, kind\."):
        read(source("x.csv", text, columns="x_name,z,y_name"), problems("fail"))
    with pytest.raises(IngestError, match=r"x\.csv has no column 5: its 4 columns are numbered from 1"):
        read(source("x.csv", text, columns="1,2,5"), problems("fail"))
    with pytest.raises(IngestError, match="needs a header; with --no-header give numbers"):
        read(source("x.csv", text, columns="x_name,kind,y_name", header=False), problems("fail"))


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_other_columns_than_three_are_one_message_about_the_file(
    source: WriteSource, problems: MakeProblems, on_error: str
) -> None:
    expected = r"x\.tsv: its lines have 4 columns \(delimiter tab\) where 3 .*'a', 'r', 'b', '7'.*--columns 1,2,3"
    with pytest.raises(IngestError, match=expected):
        read(source("x.tsv", "a\tr\tb\t7\nb\tr\tc\t8\n"), problems(on_error))
    with pytest.raises(IngestError, match=r"x\.tsv: its lines have 2 columns .*--delimiter"):
        read(source("x.tsv", "a\tr\nb\tr\n"), problems(on_error))


def test_openkes_count_is_named(source: WriteSource, problems: MakeProblems) -> None:
    text = "2\n0 1 5\n1 2 5\n"
    with pytest.raises(IngestError, match=r"x\.txt: the first line is a count, as in OpenKE .*--columns 1,3,2"):
        read(source("x.txt", text), problems("fail"))
    assert read(source("x.txt", text, columns="1,3,2"), problems("fail")) == (
        [("0", "5", "1"), ("1", "5", "2")],
        [2, 3],
    )


def test_encodings(source: WriteSource, problems: MakeProblems) -> None:
    text = "Köln\tliegt in\tNRW\nŁódź\tliegt in\tPolen\n"
    expected = [("Köln", "liegt in", "NRW"), ("Łódź", "liegt in", "Polen")]
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert read(source("x.tsv", text.encode(encoding)), problems("fail"))[0] == expected
    assert read(source("x.tsv", text.encode("cp1250"), encoding="cp1250"), problems("fail"))[0] == expected
    with pytest.raises(IngestError, match=r"x\.tsv has a NUL in every other byte, .*--encoding utf-16-le"):
        read(source("x.tsv", text.encode("utf-16-le")), problems("fail"))
    assert read(source("x.tsv", text.encode("utf-16-le"), encoding="utf-16-le"), problems("fail"))[0] == expected
    with pytest.raises(
        IngestError, match=r"x\.tsv:1: bytes that are not UTF-8 \(byte 2 of the line\).*--encoding cp1252"
    ):
        read(source("x.tsv", text.encode("cp1250")), problems("fail"))
    kept = problems("skip")
    assert read(source("x.tsv", b"a\tr\tb\nc\tr\t\x81\n", encoding="cp1252"), kept)[0] == [("a", "r", "b")]
    assert kept.examples["rejected_lines"] == "x.tsv:2: bytes that are not cp1252"


def test_nul_bytes_are_counted(source: WriteSource, problems: MakeProblems) -> None:
    kept = problems("fail")
    assert read(source("x.tsv", "a\tr\tb\nc\tr\t\0\n"), kept)[0] == [("a", "r", "b"), ("c", "r", "\0")]
    assert (kept.counts, kept.examples) == ({"nul_bytes": 1}, {"nul_bytes": "x.tsv:2"})


def test_columns_that_nobody_reads_may_hold_anything(source: WriteSource, problems: MakeProblems) -> None:
    file = source("x.tsv", b"a\tr\tb\t\xff\nb\tr\tc\t\n", columns="1,2,3")
    assert read(file, problems("fail"))[0] == [("a", "r", "b"), ("b", "r", "c")]
    file = source("x.tsv", b"a\tr\tb\t\xff\nbad\nb\tr\tc\t\n", columns="1,2,3")
    assert read(file, problems("skip"))[0] == [("a", "r", "b"), ("b", "r", "c")]


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
