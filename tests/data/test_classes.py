"""Classes beside the triples: both forms of files, and their way through a store."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from distkg.data.errors import IngestError
from distkg.data.prepare import prepare
from distkg.data.store.classes import Classes
from distkg.data.store.graph_store import Store

TRAIN = "ann\tlives in\tberlin\nbob\tlives in\tparis\nann\tknows\tbob\nberlin\tin\tgermany\n"


def folder(tmp_path: Path, **files: str) -> Path:
    source = tmp_path / "graph"
    source.mkdir()
    (source / "train.tsv").write_text(TRAIN)
    for name, text in files.items():
        (source / f"{name}.tsv").write_text(text)
    return source


def classes_of(source: Path, tmp_path: Path) -> tuple[Store, Classes]:
    prepare(str(source), str(tmp_path / "store"))
    store = Store.open(str(tmp_path / "store"))
    store.verify()
    classes = store.classes()
    assert classes is not None
    return store, classes


def of_entity(store: Store, classes: Classes, label: str) -> list[str]:
    entity = store.entity_id(label)
    own = classes.members[classes.offsets[entity] : classes.offsets[entity + 1]]
    return [classes.labels[int(kind)].as_py() for kind in own]


def asked_for(store: Store, classes: Classes, relation: str) -> tuple[str | None, str | None]:
    """Class of heads, class of tails."""
    place = store.relation_id(relation)
    kinds = classes.required[place + store.num_relations], classes.required[place]
    head, tail = (None if kind < 0 else classes.labels[int(kind)].as_py() for kind in kinds)
    return head, tail


TYPES = "ann\tperson\nbob\tperson\nann\tdoctor\nberlin\tcity\nbob\tperson\nnobody\tperson\n"
RANGES = "lives in\tperson\tcity\nknows\tperson\t-\nin\tNone\tcountry\nmarried to\tperson\tperson\n"


def test_classes_come_through_a_store_in_the_order_of_the_file(tmp_path: Path) -> None:
    store, classes = classes_of(folder(tmp_path, entity_types=TYPES, relation_domain_range=RANGES), tmp_path)
    assert of_entity(store, classes, "ann") == ["person", "doctor"]
    assert of_entity(store, classes, "bob") == ["person"]
    assert of_entity(store, classes, "paris") == []
    assert asked_for(store, classes, "lives in") == ("person", "city")
    assert asked_for(store, classes, "knows") == ("person", None)
    assert asked_for(store, classes, "in") == (None, "country")
    assert classes.labels[int(classes.first[store.entity_id("ann")])].as_py() == "person"
    assert classes.first[store.entity_id("paris")] == -1
    assert store.manifest.warnings["typed_entities_not_in_the_graph"] == 1
    assert store.manifest.examples["declared_relations_not_in_the_graph"] == "married to"


def test_two_classes_of_one_side_are_a_warning_and_the_last_holds(tmp_path: Path) -> None:
    twice = "lives in\tperson\tcity\nlives in\t-\tcountry\nknows\tperson\t-\nknows\tperson\t-\n"
    store, classes = classes_of(folder(tmp_path, entity_types=TYPES, relation_domain_range=twice), tmp_path)
    assert asked_for(store, classes, "lives in") == ("person", "country")
    assert store.manifest.warnings["relations_with_several_classes"] == 1
    assert store.manifest.examples["relations_with_several_classes"] == "lives in"


def test_files_may_be_gzipped_or_the_extensions_json(tmp_path: Path) -> None:
    source = folder(tmp_path)
    (source / "entity_types.tsv.gz").write_bytes(gzip.compress(b"ann\tperson\n"))
    (source / "metadata").mkdir()
    (source / "metadata" / "entity_classes.json").write_text(json.dumps({"bob": ["person", "father"]}))
    ranges = {"knows": {"domain": "person", "range": "None"}, "in": {"range": "country"}}
    (source / "metadata" / "relation_domain_range.json").write_text(json.dumps(ranges))
    store, classes = classes_of(source, tmp_path)
    assert of_entity(store, classes, "ann") == ["person"]
    assert of_entity(store, classes, "bob") == ["person", "father"]
    assert asked_for(store, classes, "knows") == ("person", None)
    assert asked_for(store, classes, "in") == (None, "country")


def test_a_graph_without_such_files_has_no_classes(tmp_path: Path) -> None:
    prepare(str(folder(tmp_path)), str(tmp_path / "store"))
    assert Store.open(str(tmp_path / "store")).classes() is None


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"entity_types\.tsv:2: 3 columns where 2 are expected"):
        prepare(str(folder(tmp_path, entity_types="ann\tperson\nbob\tperson\tdoctor\n")), str(tmp_path / "store"))


def test_json_of_another_form_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path)
    (source / "metadata").mkdir()
    (source / "metadata" / "entity_classes.json").write_text('{"ann": "person"}')
    with pytest.raises(IngestError, match=r"metadata/entity_classes\.json: 'ann' needs a list of classes"):
        prepare(str(source), str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("entity_classes", '{"ann": [1]}', r"'ann' has the class 1, not a string"),
        ("entity_classes", '{"ann": [null]}', r"'ann' has the class None, not a string"),
        ("entity_classes", '{"ann": [], "ann": []}', r"is not JSON: key 'ann' occurs twice"),
        ("entity_classes", "[" * 100_000, r"is not JSON: its brackets are nested too deeply"),
        ("relation_domain_range", '{"likes": {"domain": ["a"]}}', r"'likes' has a class that is not a string"),
    ],
)
def test_classes_are_texts(tmp_path: Path, name: str, text: str, message: str) -> None:
    source = folder(tmp_path)
    (source / "metadata").mkdir()
    (source / "metadata" / f"{name}.json").write_text(text)
    with pytest.raises(IngestError, match=rf"metadata/{name}\.json.*{message}"):
        prepare(str(source), str(tmp_path / "store"))
