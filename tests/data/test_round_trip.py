"""What is written in any of the usual ways is read back, whatever the labels are."""

import codecs
import csv
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyoxigraph
import pytest
from compressed import compress
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_rejects import KeptRejects

from distkg.data.errors import IngestError
from distkg.data.prepare import READERS
from distkg.data.readers.problems import Problems
from distkg.data.readers.sources import find_sources, read_options

Rows = list[tuple[str, str, str]]

CHARACTERS = st.one_of(
    st.sampled_from(",;|\t\n\r\"'# \\\u2028\x0b\x1c\x85\u00a0é北🙂"), st.characters(exclude_categories=("Cs",))
)
LABEL = st.text(CHARACTERS, min_size=1, max_size=6).filter(lambda label: not label.startswith("\ufeff"))
ROWS = st.lists(st.tuples(LABEL, LABEL, LABEL), min_size=1, max_size=8)
COMPRESSION = st.sampled_from(["", ".gz", ".bz2", ".xz", ".zst", ".lz4"])


def read(path: Path, **options: object) -> Rows:
    file = find_sources(str(path), read_options(**options))["train"]  # type: ignore[arg-type]
    rows: Rows = []
    for columns, _ in READERS[file.format](file, Problems("fail", KeptRejects)):
        rows += zip(*(column.to_pylist() for column in columns), strict=True)
    return rows


@settings(max_examples=300, deadline=None)
@given(
    rows=ROWS,
    delimiter=st.sampled_from(",;"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    order=st.permutations(["head", "relation", "tail", "weight"]),
    columns=st.integers(3, 4),
    quote_all=st.booleans(),
    compression=COMPRESSION,
)
def test_csv(
    rows: Rows, delimiter: str, end: str, encoding: str, order: list[str], columns: int, quote_all: bool,
    compression: str, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    names = order if columns == 4 else [name for name in order if name != "weight"]
    file = io.StringIO()
    # Before Python 3.13 the writer quotes of CR and LF only those that end its lines; RFC 4180 quotes both.
    broken = any(c in label for row in rows for label in row for c in "\r\n")
    quoting = csv.QUOTE_ALL if quote_all or broken else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(file, names, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writeheader()
    for head, relation, tail in rows:
        values = {"head": head, "relation": relation, "tail": tail, "weight": "0.5"}
        writer.writerow({name: values[name] for name in names})
    path = tmp_path_factory.mktemp("csv") / f"x.csv{compression}"
    path.write_bytes(compress(file.getvalue().encode(encoding), path.name))
    given_encoding = {} if encoding != "utf-8" else {"encoding": "utf-8"}
    assert read(path, delimiter=delimiter, columns="head,relation,tail", **given_encoding) == rows
    assert read(path, delimiter=delimiter, header=True, **given_encoding) == rows


PLAIN = LABEL.map(lambda label: "".join(c for c in label if c not in "\t\n\r")).filter(bool)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(PLAIN, PLAIN, PLAIN), min_size=1, max_size=8),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    header=st.booleans(),
    compression=COMPRESSION,
)
def test_tsv(rows: Rows, end: str, header: bool, compression: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    lines = [("head", "relation", "tail"), *rows] if header else rows
    path = tmp_path_factory.mktemp("tsv") / f"x.tsv{compression}"
    text = end.join("\t".join(row) for row in lines) + end
    path.write_bytes(compress(text.encode("utf-8-sig"), path.name))
    assert read(path, delimiter="tab", header=header) == rows


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, order=st.permutations(["head", "relation", "tail"]), dictionary=st.booleans())
def test_parquet(rows: Rows, order: list[str], dictionary: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    columns = dict(zip(("head", "relation", "tail"), map(pa.array, zip(*rows, strict=True)), strict=True))
    path = tmp_path_factory.mktemp("parquet") / "x.parquet"
    pq.write_table(pa.table({name: columns[name] for name in order}), path, use_dictionary=dictionary)
    assert read(path) == rows


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), LABEL), min_size=1, max_size=8),
    form=st.sampled_from(["nt", "nq", "ttl", "trig", "rdf"]),
    compression=COMPRESSION,
)
def test_rdf(
    rows: list[tuple[int, int, str]], form: str, compression: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    controls = {chr(code) for code in range(32)} | {"\ufffe", "\uffff"}  # XML cannot hold these
    facts = [
        (f"http://x/e{head}", f"http://x/r{relation}", text)
        for head, relation, text in rows
        if form != "rdf" or not controls & set(text)
    ]
    node, literal = pyoxigraph.NamedNode, pyoxigraph.Literal
    graph = [pyoxigraph.Triple(node(head), node(relation), literal(text)) for head, relation, text in facts]
    extension = {"nt": "nt", "nq": "nq", "ttl": "ttl", "trig": "trig", "rdf": "rdf"}[form]
    data = pyoxigraph.serialize(graph, format=pyoxigraph.RdfFormat.from_extension(extension))
    path = tmp_path_factory.mktemp("rdf") / f"x.{form}{compression}"
    path.write_bytes(compress(data or b"", path.name))
    assert sorted(read(path)) == sorted((head, relation, str(literal(text))) for head, relation, text in facts)


PIECES = st.sampled_from(
    ["a", "b", "r", "\t", "\t", ",", ";", "|", " ", "\n", "\n", "\r", "\r\n", '"', '""', "#", "\0", "\ufeff", "é", "7",
     "head\trelation\ttail\n", "a\tr\tb\n", "a,r,b\n", "sep=;\n", "<http://a> <http://b> <http://c> .\n", "@prefix"]
)  # fmt: skip
ENDINGS = [
    "tsv",
    "csv",
    "txt",
    "nt",
    "nq",
    "ttl",
    "trig",
    "rdf",
    "n3",
    "jsonld",
    "parquet",
    "tsv.gz",
    "csv.bz2",
    "nt.xz",
]


@settings(max_examples=300, deadline=None)
@given(
    content=st.one_of(st.binary(max_size=60), st.lists(PIECES, max_size=25).map(lambda each: "".join(each).encode())),
    ending=st.sampled_from(ENDINGS),
    skip=st.booleans(),
    packed=st.booleans(),
    header=st.sampled_from([None, True, False]),
    columns=st.sampled_from([None, "1,2,3", "head,relation,tail"]),
    encoding=st.sampled_from([None, "latin-1", "utf-16", "shift_jis"]),
)
def test_any_bytes_are_facts_or_counted_or_an_error(
    content: bytes, ending: str, skip: bool, packed: bool, header: bool | None, columns: str | None,
    encoding: str | None, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("any") / f"x.{ending}"
    path.write_bytes(compress(content, path.name) if packed else content)
    options = read_options(columns=columns, header=header, encoding=encoding)
    file = find_sources(str(path), options)["train"]
    problems = Problems("skip" if skip else "fail", KeptRejects)
    facts, refused = 0, ""
    try:
        for batch_columns, lines in READERS[file.format](file, problems):
            assert [len(column) for column in batch_columns] == [len(lines)] * 3
            assert all(label for column in batch_columns for label in column.to_pylist())
            facts += len(lines)
    except IngestError as error:
        refused = str(error)
    if refused:
        assert path.name in refused
    elif (
        ending in ("tsv", "txt")
        and not encoding
        and b"\r" not in content
        and b"," not in content
        and b";" not in content
    ):
        counted = sum(problems.counts[f"{kind}_lines"] for kind in ("blank", "comment", "header", "rejected"))
        told = sum("a count, is skipped" in note for note in problems.notes) + content.startswith(b"sep=")
        marks = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        text = content.removeprefix(next((mark for mark in marks if content.startswith(mark)), b""))
        assert facts + counted + told == text.count(b"\n") + (len(text) > 0 and not text.endswith(b"\n"))
