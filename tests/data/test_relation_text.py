"""Text of relations: labels as words, vectors as sums, and the file beside a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from distkg.cli import app
from distkg.data.errors import IngestError
from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store, StoreError
from distkg.data.store.relation_text import (
    RELATION_TEXT,
    make_relation_text,
    read_descriptions,
    read_relation_text,
    relation_vectors,
    wordllama_encoder,
    words_of,
)
from distkg.foundation.models import KnowledgeGraph


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("/people/person/nationality", "people person nationality"),
        (
            "/tv/tv_program/regular_cast./tv/regular_tv_appearance/actor",
            "tv tv program regular cast tv regular tv appearance actor",
        ),
        ("_hypernym", "hypernym"),
        ("_also_see", "also see"),
        ("location_of", "location of"),
        ("isLocatedIn", "is located in"),
        ("hasISBNNumber", "has isbn number"),
        ("concept:agentcontrols", "agentcontrols"),
        ("http://dbpedia.org/ontology/birthPlace", "birth place"),
        ("http://www.w3.org/2000/01/rdf-schema#subClassOf", "sub class of"),
        ("Größe", "größe"),
        ("P19", "p19"),
        ("->", "->"),
    ],
)
def test_a_label_as_words(label: str, words: str) -> None:
    assert words_of(label) == words


VECTORS = {
    "birthPlace": [1, 0],
    "birth place": [0, 2],
    "is": [4, 0],
    "Where one was born.": [0, 8],
    "Born here.": [16, 0],
    "?": [np.nan, 0],
}


def encode(texts: Sequence[str]) -> np.ndarray:
    return np.array([VECTORS.get(text, [0, 0]) for text in texts], np.float32)


def test_vectors_are_sums_and_inverses_have_the_opposite_sign() -> None:
    assert relation_vectors(["birthPlace", "is"], encode).tolist() == [[1, 2], [8, 0], [-1, -2], [-8, 0]]
    told = {"birthPlace": ("Where one was born.", "Born here."), "is": ("", "")}
    assert relation_vectors(["birthPlace", "is"], encode, told).tolist() == [[1, 10], [8, 0], [15, -2], [-8, 0]]


def test_a_relation_without_a_description_is_named() -> None:
    with pytest.raises(StoreError, match="relation 'is' has no description"):
        relation_vectors(["birthPlace", "is"], encode, {"birthPlace": ("", "")})


def test_a_vector_that_is_not_finite_is_refused() -> None:
    with pytest.raises(StoreError, match=r"relation '\?' a vector that is not finite"):
        relation_vectors(["is", "?"], encode)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "facts.tsv").write_text("a\tbirthPlace\tb\nb\tis\tc\nc\tis\ta\n")
    prepare(str(tmp_path / "facts.tsv"), str(tmp_path / "store"), split=(1.0, 0.0, 0.0))
    return Store.open(str(tmp_path / "store"))


def test_a_store_keeps_them_and_graphs_have_them(store: Store, tmp_path: Path) -> None:
    assert read_relation_text(store) is None
    assert KnowledgeGraph.of_store(store).relation_text is None
    make_relation_text(store, encode)
    expected = {"birthPlace": [1, 2], "is": [8, 0]}
    rows = [expected[label] for label in store.relation_labels().to_pylist()]
    text = KnowledgeGraph.of_store(store).relation_text
    assert text is not None
    assert text.tolist() == [*rows, *[[-x, -y] for x, y in rows]]
    Store.open(store.address).verify()


def test_a_file_elsewhere_serves_other_stores_with_the_same_relations(store: Store, tmp_path: Path) -> None:
    make_relation_text(store, encode)
    (tmp_path / "other.tsv").write_text("x\tis\ty\ny\tbirthPlace\tx\n")
    prepare(str(tmp_path / "other.tsv"), str(tmp_path / "other"), split=(1.0, 0.0, 0.0))
    other = Store.open(str(tmp_path / "other"))
    found = read_relation_text(other, str(tmp_path / "store" / RELATION_TEXT))
    assert found is not None
    assert found[other.relation_id("is")].tolist() == [8, 0]
    assert found[2 + other.relation_id("birthPlace")].tolist() == [-1, -2]


def test_what_cannot_be_read_is_said(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no file of relation vectors at .*x\.parquet.*make_relation_text"):
        read_relation_text(store, str(tmp_path / "x.parquet"))
    make_relation_text(store, encode)
    (tmp_path / "more.tsv").write_text("x\tis\ty\ny\teats\tx\n")
    prepare(str(tmp_path / "more.tsv"), str(tmp_path / "more"), split=(1.0, 0.0, 0.0))
    with pytest.raises(StoreError, match=r"no vector for relation 'eats'.*made for other relations"):
        read_relation_text(Store.open(str(tmp_path / "more")), str(tmp_path / "store" / RELATION_TEXT))
    (tmp_path / "store" / RELATION_TEXT).write_bytes(b"not parquet")
    with pytest.raises(StoreError, match="cannot be read as relation vectors"):
        read_relation_text(store)


def test_the_encoder_puts_like_texts_side_by_side() -> None:
    vectors = wordllama_encoder()(["place of birth", "birth place", "award winner"])
    assert vectors.shape == (3, 64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert vectors[0] @ vectors[1] > 0.8
    assert vectors[0] @ vectors[2] < 0.4


def test_descriptions_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "told.tsv"
    file.write_text("r\tis near\thas near it\ns\tlies in\tholds\n", encoding="utf-8")
    assert read_descriptions(file) == {"r": ("is near", "has near it"), "s": ("lies in", "holds")}
    file.write_text("r\tis near\n", encoding="utf-8")
    with pytest.raises(StoreError, match=r"told.tsv:1: 2 columns where 3 are expected"):
        read_descriptions(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "r\tis near\thas near it\ns\tlies in\t\n",
            r"told.tsv:2: relation 's': the description of its inverse is empty",
        ),
        ("r\t \thas near it\n", r"told.tsv:1: relation 'r': the description of it is empty"),
        ("r\tis near\tb\nr\tlies in\tb\n", r"told.tsv:2: relation 'r' has other descriptions in an earlier line"),
    ],
)
def test_descriptions_that_say_nothing_or_two_things_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "told.tsv").write_text(content)
    with pytest.raises(IngestError, match=message):
        read_descriptions(tmp_path / "told.tsv")


def test_the_same_description_twice_is_one(tmp_path: Path) -> None:
    (tmp_path / "told.tsv").write_text("r\tis near\tb\nr\tis near\tb\n")
    assert read_descriptions(tmp_path / "told.tsv") == {"r": ("is near", "b")}


def test_on_the_command_line(store: Store, tmp_path: Path) -> None:
    labels = store.relation_labels().to_pylist()
    file = tmp_path / "told.tsv"
    file.write_text("".join(f"{label}\tsays {label}\tis said by {label}\n" for label in labels), encoding="utf-8")
    result = CliRunner().invoke(app, ["relation-text", store.address, "--descriptions", str(file)])
    assert result.exit_code == 0
    assert result.output.strip().endswith(RELATION_TEXT)
    told = read_relation_text(store)
    plain = relation_vectors(labels, wordllama_encoder())
    assert told is not None
    assert told.shape == plain.shape
    assert not np.allclose(told, plain)
