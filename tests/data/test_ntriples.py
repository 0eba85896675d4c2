from collections.abc import Callable

import pytest
from kept_rejects import KeptRejects

from distkg.data.errors import IngestError
from distkg.data.readers.ntriples import read_ntriples
from distkg.data.readers.problems import Problems
from distkg.data.readers.sources import SourceFile

WriteSource = Callable[..., SourceFile]
MakeProblems = Callable[[str], Problems]
GOOD = "<http://x/a> <http://x/p> <http://x/b> .\n"


def read(file: SourceFile, problems: Problems) -> tuple[list[tuple[str, str, str]], list[int]]:
    rows: list[tuple[str, str, str]] = []
    lines: list[int] = []
    for columns, numbers in read_ntriples(file, problems):
        rows += zip(*(column.to_pylist() for column in columns), strict=True)
        lines += numbers.tolist()
    return rows, lines


@pytest.mark.parametrize("name", ["x.nt", "x.nt.gz"])
def test_terms_become_distinct_labels(source: WriteSource, problems: MakeProblems, name: str) -> None:
    content = (
        GOOD
        + '<http://x/a> <http://x/p> "http://x/b" .\n'
        + '<http://x/a> <http://x/p> "Gr\\u00FC\\"n"@de .\n'
        + '_:b <http://x/p> "1"^^<http://www.w3.org/2001/XMLSchema#integer> .\n'
    )
    rows, lines = read(source(name, content), problems("fail"))
    assert rows == [
        ("http://x/a", "http://x/p", "http://x/b"),
        ("http://x/a", "http://x/p", '"http://x/b"'),
        ("http://x/a", "http://x/p", '"Grü\\"n"@de'),
        ("_:b", "http://x/p", '"1"^^<http://www.w3.org/2001/XMLSchema#integer>'),
    ]
    assert lines == [1, 2, 3, 4]


def test_comments_and_blank_lines_are_passed_over(source: WriteSource, problems: MakeProblems) -> None:
    kept = problems("fail")
    rows, lines = read(source("x.nt", "# a comment\n" + GOOD + "\n" + GOOD.replace("/b", "/c")), kept)
    assert [row[2] for row in rows] == ["http://x/b", "http://x/c"]
    assert lines == [2, 4]
    assert not kept.counts


@pytest.mark.parametrize(
    "line",
    [
        b"<http://x/a> <http://x/p> .\n",
        b"<http://x/a b> <http://x/p> <http://x/b> .\n",
        b"<http://x/a> <http://x/p> <http://x/b>\n",
        b'<http://x/a> <http://x/p> "\xff" .\n',
        b'"literal" <http://x/p> <http://x/b> .\n',
        b"a\tp\tb\n",
    ],
)
def test_a_syntax_error_names_file_and_line(source: WriteSource, problems: MakeProblems, line: bytes) -> None:
    file = source("x.nt", GOOD.encode() + line + GOOD.encode())
    with pytest.raises(IngestError, match=r"x\.nt:2: not N-Triples: "):
        read(file, problems("fail"))


def test_skipping_sets_the_bad_line_aside(source: WriteSource, problems: MakeProblems, rejects: KeptRejects) -> None:
    kept = problems("skip")
    rows, lines = read(source("x.nt", GOOD + "<oops\n" + GOOD), kept)
    kept.close()
    assert len(rows) == 2
    assert lines == [1, 3]
    assert rejects.text.splitlines()[1].startswith("x.nt\t2\tnot N-Triples: ")
    assert rejects.text.splitlines()[1].endswith("\t<oops")


def test_the_graph_of_a_quad_is_left_out(source: WriteSource, problems: MakeProblems) -> None:
    quad = GOOD.replace(" .", " <http://x/g> .")
    rows, lines = read(source("x.nq.bz2", quad + "# a comment\n\n" + GOOD.replace("/b", "/c")), problems("fail"))
    assert rows == [("http://x/a", "http://x/p", "http://x/b"), ("http://x/a", "http://x/p", "http://x/c")]
    assert lines == [1, 4]
    with pytest.raises(IngestError, match=r"x\.nt:1: not N-Triples: a quad, .* --format nq"):
        read(source("x.nt", quad), problems("fail"))


def test_messages_have_one_line_number(source: WriteSource, problems: MakeProblems) -> None:
    with pytest.raises(
        IngestError, match=r"^x\.nt:2: not N-Triples: Invalid IRI code point ' ' \(columns 14 to 28\): "
    ):
        read(source("x.nt", GOOD + "<http://x/a> <http://x/p q> <http://x/b> .\n"), problems("fail"))


def test_literals_are_dropped_and_counted(source: WriteSource, problems: MakeProblems) -> None:
    text = (
        GOOD + '<http://x/a> <http://x/p> "b" .\n' + '<http://x/a> <http://x/p> "c"@en-GB .\n_:a <http://x/p> _:b .\n'
    )
    kept = problems("fail")
    rows, lines = read(source("x.nt", text, literals="drop"), kept)
    assert rows == [("http://x/a", "http://x/p", "http://x/b"), ("_:a", "http://x/p", "_:b")]
    assert lines == [1, 4]
    assert (kept.counts, kept.examples) == ({"literals_dropped": 2}, {"literals_dropped": "x.nt:2"})
    kept = problems("fail")
    assert read(source("x.nt", text), kept)[0][2][2] == '"c"@en-gb'
    assert kept.notes == ["x.nt: 2 facts have a literal as their tail; use --literals drop to leave these out"]
