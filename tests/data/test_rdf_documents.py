from collections.abc import Callable
from pathlib import Path

import pytest
from kept_rejects import KeptRejects

from distkg.data.errors import IngestError
from distkg.data.prepare import prepare
from distkg.data.readers import rdf_documents
from distkg.data.readers.problems import Problems
from distkg.data.readers.rdf_documents import read_rdf_document
from distkg.data.readers.sources import ReadOptions, SourceFile
from distkg.data.store.graph_store import Store

WriteSource = Callable[..., SourceFile]
MakeProblems = Callable[[str], Problems]

PREFIX = "@prefix ex: <http://x/> .\n"
XML = (
    '<?xml version="1.0"?>\n<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:ex="http://x/">\n'
    "{}</rdf:RDF>\n"
)
FACT = '<rdf:Description rdf:about="http://x/a"><ex:p rdf:resource="http://x/{}"/></rdf:Description>\n'
DOCUMENTS = {
    "x.ttl": PREFIX + "ex:a ex:p ex:b , ex:c .\n",
    "x.trig": PREFIX + "ex:g { ex:a ex:p ex:b . } ex:a ex:p ex:c .\n",
    "x.rdf": XML.format(FACT.format("b") + FACT.format("c")),
    "x.owl": XML.format(FACT.format("b") + FACT.format("c")),
    "x.xml": XML.format(FACT.format("b") + FACT.format("c")),
    "x.n3": PREFIX + "{ ex:d ex:p ex:e } => { ex:f ex:p ex:g } . ex:a ex:p ex:b , ex:c .\n",
    "x.jsonld": '{"@context": {"ex": "http://x/"}, "@id": "ex:a", "ex:p": [{"@id": "ex:b"}, {"@id": "ex:c"}]}',
}


def read(file: SourceFile, problems: Problems) -> tuple[list[tuple[str, str, str]], list[int]]:
    rows: list[tuple[str, str, str]] = []
    lines: list[int] = []
    for columns, numbers in read_rdf_document(file, problems):
        rows += zip(*(column.to_pylist() for column in columns), strict=True)
        lines += numbers.tolist()
    return rows, lines


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_form_gives_its_facts(source: WriteSource, problems: MakeProblems, name: str, ending: str) -> None:
    rows, lines = read(source(name + ending, DOCUMENTS[name]), problems("fail"))
    assert sorted(rows) == [("http://x/a", "http://x/p", "http://x/b"), ("http://x/a", "http://x/p", "http://x/c")]
    assert lines == [1, 2]


def test_formulas_are_no_facts(source: WriteSource, problems: MakeProblems) -> None:
    kept = problems("fail")
    read(source("x.n3", DOCUMENTS["x.n3"]), kept)
    assert kept.counts == {"formulas_left_out": 3}


def test_batches_count_on(source: WriteSource, problems: MakeProblems, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdf_documents, "BATCH_ROWS", 2)
    text = PREFIX + "".join(f"ex:a ex:p ex:b{i} .\n" for i in range(5))
    assert read(source("x.ttl", text), problems("fail"))[1] == [1, 2, 3, 4, 5]


def test_nameless_nodes_are_numbered_and_names_stay(source: WriteSource, problems: MakeProblems) -> None:
    text = PREFIX + "_:b1 ex:p [ ex:q ex:r ] .\nex:l ex:q [ ex:q _:b1 ] .\n"
    rows, _ = read(source("x.ttl", text), problems("fail"))
    assert sorted(rows) == sorted(
        [
            ("_:x.ttl-1", "http://x/q", "http://x/r"),
            ("_:b1", "http://x/p", "_:x.ttl-1"),
            ("_:x.ttl-2", "http://x/q", "_:b1"),
            ("http://x/l", "http://x/q", "_:x.ttl-2"),
        ]
    )


def test_literals_are_kept_and_told_or_dropped_and_counted(source: WriteSource, problems: MakeProblems) -> None:
    text = PREFIX + 'ex:a ex:p ex:b ; ex:name "Ada"@EN , 7 .\n'
    kept = problems("fail")
    rows, _ = read(source("x.ttl", text), kept)
    assert [row[2] for row in rows[1:]] == ['"Ada"@en', '"7"^^<http://www.w3.org/2001/XMLSchema#integer>']
    assert kept.notes == ["x.ttl: 2 facts have a literal as their tail; use --literals drop to leave these out"]
    kept = problems("fail")
    assert read(source("x.ttl", text, literals="drop"), kept) == ([("http://x/a", "http://x/p", "http://x/b")], [1])
    assert (kept.counts, kept.examples) == ({"literals_dropped": 2}, {"literals_dropped": "x.ttl:triple 2"})


def test_errors_name_line_and_columns_once(source: WriteSource, problems: MakeProblems) -> None:
    text = PREFIX + "ex:a ex:p ex:b .\nex:a ex:p <http://a b> .\nex:c ex:p ex:d .\n"
    with pytest.raises(
        IngestError, match=r"x\.ttl:3: not Turtle: Invalid IRI code point ' ' \(columns 11 to \d+\): 'ex:a"
    ):
        read(source("x.ttl", text), problems("fail"))


def test_skipping_sets_a_statement_aside(source: WriteSource, problems: MakeProblems, rejects: KeptRejects) -> None:
    kept = problems("skip")
    text = PREFIX + "ex:a ex:p ex:b .\nex:a ex:p c d .\nex:c ex:p ex:d .\nno:a ex:p ex:d .\nex:e ex:p ex:f ."
    rows, _ = read(source("x.ttl", text), kept)
    kept.close()
    assert [row[0] for row in rows] == ["http://x/a", "http://x/c", "http://x/e"]
    assert rejects.text.splitlines()[1:] == [
        "x.ttl\t3\tnot Turtle: c is not a valid RDF object (column 11)\tex:a ex:p c d .",
        "x.ttl\t5\tnot Turtle: The prefix no: has not been declared (columns 1 to 5)\tno:a ex:p ex:d .",
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "x.ttl",
            PREFIX + 'ex:a ex:p "never closed .\nex:c ex:p ex:d .\nex:c ex:p ex:d .\n',
            r"x\.ttl:2: not Turtle: ",
        ),
        ("x.rdf", XML.format(FACT.format("b")).replace("</rdf:RDF>", "</rdf:oops>"), r"x\.rdf: not RDF/XML: "),
        ("x.rdf", XML.format(FACT.format("b c")), r"x\.rdf: not RDF/XML: .*'http://x/b c'"),
        ("x.rdf", "hello", r"x\.rdf: not RDF/XML: "),
        ("x.jsonld", '{"@context": "https://schema.org/", "@id": "x"}', r"x\.jsonld: not JSON-LD: "),
    ],
)
def test_where_nothing_can_be_read_on_it_ends(
    source: WriteSource, problems: MakeProblems, name: str, text: str, message: str
) -> None:
    with pytest.raises(IngestError, match=message + r".*convert the file to N-Triples"):
        read(source(name, text), problems("skip"))


def test_entities_that_grow_without_bound_are_refused(source: WriteSource, problems: MakeProblems) -> None:
    names = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10))
    bomb = f'<!DOCTYPE rdf:RDF [<!ENTITY e0 "aaaaaaaaaa">{names}]>\n'
    text = XML.format(FACT.format("b")).replace("<rdf:RDF", bomb + "<rdf:RDF")
    with pytest.raises(IngestError, match=r"x\.owl: entity 'e1' is made of other entities"):
        read(source("x.owl", text), problems("fail"))
    plain = '<!DOCTYPE rdf:RDF [<!ENTITY ex "http://x/">]>\n<rdf:RDF'
    text = XML.format(FACT.format("b").replace("http://x/b", "&ex;b")).replace("<rdf:RDF", plain)
    assert read(source("x.owl", text), problems("fail"))[0] == [("http://x/a", "http://x/p", "http://x/b")]


def test_the_encoding_of_an_xml_declaration(source: WriteSource, problems: MakeProblems) -> None:
    text = XML.format(FACT.format("é")).replace('version="1.0"', 'version="1.0" encoding="ISO-8859-1"')
    rows, _ = read(source("x.rdf", text.encode("latin-1")), problems("fail"))
    assert rows == [("http://x/a", "http://x/p", "http://x/é")]


def test_a_damaged_file_is_said_to_be_one(tmp_path: Path) -> None:
    from compressed import compress

    text = PREFIX + "".join(f"ex:a{i} ex:p ex:b{i * 7919 % 10007} .\n" for i in range(5000))
    (tmp_path / "x.ttl.gz").write_bytes(compress(text.encode(), "x.gz")[:-100])
    with pytest.raises(IngestError, match=r"x\.ttl\.gz:\d+: the file cannot be read .*cut off"):
        prepare(str(tmp_path / "x.ttl.gz"), str(tmp_path / "s"), ReadOptions(on_error="skip"))


def test_places_count_triples(tmp_path: Path) -> None:
    (tmp_path / "train.ttl").write_text(PREFIX + "ex:a ex:p ex:b ,\n ex:c , ex:b .\n")
    made = prepare(str(tmp_path), str(tmp_path / "s"))
    assert made.warnings == {"train_duplicates": 1}
    assert made.examples == {"train_duplicates": "train.ttl:triple 3 repeats train.ttl:triple 1"}


def test_equal_files_make_equal_stores(tmp_path: Path) -> None:
    (tmp_path / "x.ttl").write_text(PREFIX + "".join(f"ex:a{i} ex:p [ ex:q ex:b{i} ] .\n" for i in range(9)))
    for name in "ab":
        prepare(str(tmp_path / "x.ttl"), str(tmp_path / name))
    assert Store.open(str(tmp_path / "a")).manifest.files == Store.open(str(tmp_path / "b")).manifest.files
