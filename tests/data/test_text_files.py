import gzip
from pathlib import Path

import pytest
from compressed import compress

from distkg.data.errors import IngestError
from distkg.data.prepare import prepare
from distkg.data.readers.text_files import find_text_file, read_lines, read_rows, text_file
from distkg.data.storage.location import Location
from distkg.data.store.graph_store import Store
from distkg.data.store.relation_text import read_descriptions
from distkg.inference.queries import read_queries

FORMS = {
    "plain": ("x.tsv", "utf-8"),
    "marked": ("x.tsv", "utf-8-sig"),
    "UTF-16": ("x.tsv", "utf-16"),
    "gzip": ("x.tsv.gz", "utf-8"),
    "bzip2": ("x.tsv.bz2", "utf-16"),
    "xz": ("x.tsv.xz", "utf-8-sig"),
    "zstd": ("x.tsv.zst", "utf-8"),
}


def write(folder: Path, form: str, text: str, stem: str = "x") -> Path:
    name, encoding = FORMS[form]
    path = folder / name.replace("x.tsv", f"{stem}.tsv")
    path.write_bytes(compress(text.encode(encoding), path.name))
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_any_form(tmp_path: Path, form: str, end: str) -> None:
    path = write(tmp_path, form, end.join(["ä\u2028b\tc", "", "d\x0be\tf", ""]))
    assert list(read_lines(text_file(path))) == [(1, "ä\u2028b\tc"), (3, "d\x0be\tf")]


def test_rows_say_what_is_expected(tmp_path: Path) -> None:
    path = write(tmp_path, "plain", "# a comment\n#a\tb\n\nc\td\ne\n")
    rows = read_rows(text_file(path), 2, "entity, class")
    assert [next(rows), next(rows)] == [(2, ["#a", "b"]), (4, ["c", "d"])]
    with pytest.raises(IngestError, match=r"x\.tsv:5: 1 column where 2 are expected, tab-separated: entity, class"):
        next(rows)


def test_two_forms_of_one_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "plain", "a")
    write(tmp_path, "gzip", "a")
    folder = Location.of(str(tmp_path))
    with pytest.raises(IngestError, match=r"holds x\.tsv and x\.tsv\.gz; keep one"):
        find_text_file(folder, folder.names(), "x.tsv")


@pytest.mark.parametrize("form", FORMS)
def test_every_file_of_a_user_comes_through_the_same_reader(tmp_path: Path, form: str) -> None:
    (tmp_path / "train.tsv").write_text("p1\tnear\tp2\np2\tnear\tp1\n")
    write(tmp_path, form, "p1\tperson\r\np2\tperson\r\n", "entity_types")
    write(tmp_path, form, "near\tperson\tperson\n", "relation_domain_range")
    made = prepare(str(tmp_path), str(tmp_path / "s"))
    assert not made.warnings
    store = Store.open(str(tmp_path / "s"))
    classes = store.classes()
    assert classes is not None
    assert (len(classes.members), classes.required.tolist()) == (2, [0, 0])
    queries = write(tmp_path, form, "# asked\np1\tnear\n\np2\tnear\n", "queries")
    assert read_queries(queries, store).tolist() == [[store.entity_id("p1"), 0], [store.entity_id("p2"), 0]]
    told = write(tmp_path, form, "near\tis near\thas near it\n", "told")
    assert read_descriptions(told) == {"near": ("is near", "has near it")}


def test_a_bad_byte_is_named_by_file_line_and_place(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("p1\tnear\tp2\n")
    (tmp_path / "entity_types.tsv.gz").write_bytes(gzip.compress("p1\tperson\np2\tKönig\n".encode("cp1252")))
    with pytest.raises(IngestError, match=r"entity_types\.tsv\.gz:2: bytes that are not UTF-8 \(byte 5 of the line\)"):
        prepare(str(tmp_path), str(tmp_path / "s"))


def test_damaged_metadata_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("p1\tnear\tp2\n")
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "entity_classes.json").write_text("{")
    with pytest.raises(IngestError, match=r"metadata/entity_classes\.json is not JSON"):
        prepare(str(tmp_path), str(tmp_path / "s"))
