import pytest

from distkg.data.errors import IngestError
from distkg.data.readers.line_layout import Layout, choose_columns, detect_layout
from distkg.data.readers.sources import ReadOptions
from distkg.data.readers.text_blocks import Block


def layout(text: str, extension: str = "csv", **options: object) -> Layout:
    return detect_layout(Block(text.encode(), 1), extension, ReadOptions(**options), "x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "extension", "delimiter", "columns"),
    [
        ("a\tr\tb,c\nb\tr\tc,d\n", "csv", "\t", 3),
        ("Washington, D.C.;in;USA\nBoston;in;USA\nUSA;borders;Canada\n", "csv", ";", 3),
        ("a,b;r;c\nd,e;r;f\n", "csv", ";", 3),
        ("a b,r,c d\ne f,r,g h\n", "tsv", ",", 3),
        ('"a;b",r,c\n"d;e",r,"f;g"\n', "csv", ",", 3),
        ("a r b\nb r c\n", "tsv", " ", 3),
        ("a|r|b c\nb|r|c d\n", "txt", "|", 3),
        ("a\tr\tb\nbad\nb\tr\tc\nc\tr\td\nd\tr\te\n", "csv", "\t", 3),
        ("head,tail,relation\na;b,c;d,r;s\n", "csv", ",", 3),
    ],
)
def test_the_delimiter_gives_most_lines_the_same_columns(
    text: str, extension: str, delimiter: str, columns: int
) -> None:
    found = layout(text, extension)
    assert (found.delimiter, found.columns) == (delimiter, columns)


def test_conceptnets_tabs_win_over_as_many_commas() -> None:
    line = '/a/[/r/IsA/,/c/en/oar/,/c/en/tool/]\t/r/IsA\t/c/en/oar\t/c/en/tool\t{"weight": 1.0, "dataset": "/d/x"}\n'
    found = layout(line * 3, columns=("3", "2", "4"))
    assert (found.delimiter, found.columns, found.order) == ("\t", 5, (2, 1, 3))


def test_a_delimiter_can_be_given() -> None:
    assert layout("a;b,r;s,c\nd;e,r;s,f\n", delimiter=";", columns=("1", "2", "3")).delimiter == ";"
    assert layout("sep=;\na,b;r;c\n").delimiter == ";"
    assert layout("sep=;\na,b;r;c\n").preface == 1


def test_what_stands_before_the_first_triple() -> None:
    found = layout("# by hand\n\nhead,relation,tail\na,r,b\n")
    assert (found.preface, found.comments, found.blank, found.header) == (3, 1, 1, True)


def test_a_label_that_is_called_like_a_column_is_no_header() -> None:
    assert not layout("source,type,target\nb,type,c\n").header
    assert layout("source,type,target\nb,type,c\n", header=True).header
    assert not layout("source,type,target\nb,r,c\n", header=False).header


def test_rs_row_names_have_no_column_name() -> None:
    found = layout("head\trel\ttail\n1\ta\tr\tb\n2\tb\tr\tc\n", "tsv")
    assert (found.order, found.columns, found.left_out) == ((1, 2, 3), 4, ("column 1",))


def test_several_columns_for_a_role_are_an_error_that_lists_all() -> None:
    with pytest.raises(IngestError, match=r"x: its header has several columns for head and tail \(s_id, s_name, o_id"):
        layout("s_id,s_name,p,o_id,o_name\n1,a,r,2,b\n")


def test_columns_are_numbered_from_one() -> None:
    assert choose_columns(("3", "1", "2"), ["a", "b", "c"], 3, "x") == (2, 0, 1)
    assert choose_columns(("C", "a", "2"), ["a", "b", "c"], 3, "x") == (2, 0, 1)
    with pytest.raises(IngestError, match="x has no column 0: its 3 columns are numbered from 1"):
        choose_columns(("0", "1", "2"), ["a", "b", "c"], 3, "x")
    with pytest.raises(IngestError, match="names a column twice"):
        choose_columns(("a", "1", "2"), ["a", "b", "c"], 3, "x")
