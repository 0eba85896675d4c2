"""A store that is extended: old ids stay, new ones follow, and old and new facts are compared together."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.data.errors import IngestError
from distkg.data.extend import extend_store
from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store, StoreError
from distkg.data.store.manifest import MANIFEST

TRAIN, VALID = "a\tr\tb\nb\tr\tc\nc\ts\ta\n", "a\tr\tc\n"


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")
    return folder


def base(folder: Path, **more: str) -> Store:
    prepare(str(write(folder / "old", train=TRAIN, valid=VALID, **more)), str(folder / "base"))
    return Store.open(str(folder / "base"))


def facts(store: Store, split: str) -> list[tuple[str, ...]]:
    entities, relations = store.entity_labels().to_pylist(), store.relation_labels().to_pylist()
    return [(entities[h], relations[r], entities[t]) for h, r, t in store.triples(split).tolist()]


def test_old_ids_stay_and_new_facts_follow_the_old_ones(tmp_path: Path) -> None:
    old = base(tmp_path)
    new = write(tmp_path / "new", facts="d\tr\ta\na\tq\td\ne\tr\td\n")
    report = extend_store(old, str(new / "facts.tsv"), str(tmp_path / "grown"))
    grown = Store.open(str(tmp_path / "grown"))
    assert (report.entities, report.relations, report.triples) == (5, 3, {"train": 6, "valid": 1, "test": 0})
    assert grown.entity_labels().to_pylist()[:3] == old.entity_labels().to_pylist()
    assert set(grown.entity_labels().to_pylist()[3:]) == {"d", "e"}
    assert grown.relation_labels().to_pylist() == ["r", "s", "q"]
    np.testing.assert_array_equal(grown.triples("train")[:3], old.triples("train"))
    assert facts(grown, "train")[3:] == [("d", "r", "a"), ("a", "q", "d"), ("e", "r", "d")]
    made = grown.manifest.grown
    assert made is not None
    assert (made.entities, made.relations, made.triples) == (3, 2, {"train": 3, "valid": 1, "test": 0})
    assert made.store == str(tmp_path / "base")
    assert grown.manifest.partition_offsets == [0, 5]
    grown.verify()


def test_a_folder_adds_to_every_split_and_needs_none(tmp_path: Path) -> None:
    old = base(tmp_path)
    new = write(tmp_path / "new", valid="d\tr\ta\n", test="b\tr\td\n")
    assert extend_store(old, str(new), str(tmp_path / "grown")).triples == {"train": 3, "valid": 2, "test": 1}
    named = write(tmp_path / "named", facts="a\ts\tb\n", held="a\ts\tc\n")
    arguments = str(named / "facts.tsv"), str(tmp_path / "second")
    assert extend_store(old, *arguments, test=str(named / "held.tsv")).triples == {"train": 4, "valid": 1, "test": 1}


def test_repeats_are_treated_as_in_prepare(tmp_path: Path) -> None:
    """A fact that its split holds is dropped, one that another split holds is in both; each is counted and located."""
    old = base(tmp_path)
    new = write(tmp_path / "new", facts="a\tr\tb\nd\tr\tb\nd\tr\tb\na\tr\tc\n")
    report = extend_store(old, str(new / "facts.tsv"), str(tmp_path / "grown"))
    assert report.triples == {"train": 5, "valid": 1, "test": 0}
    assert report.warnings == {"train_duplicates": 2, "train_valid_overlap": 1}
    assert report.examples == {
        "train_duplicates": f"facts.tsv:1 repeats train.parquet of {tmp_path}/base:row 1",
        "train_valid_overlap": f"valid.parquet of {tmp_path}/base:row 1 is also facts.tsv:4",
    }


def test_a_grown_store_grows_again(tmp_path: Path) -> None:
    old = base(tmp_path)
    for name, text in (("one", "d\tr\ta\n"), ("two", "e\tr\td\n")):
        extend_store(old, str(write(tmp_path / name, facts=text) / "facts.tsv"), str(tmp_path / f"grown-{name}"))
        old = Store.open(str(tmp_path / f"grown-{name}"))
    assert old.entity_labels().to_pylist()[3:] == ["d", "e"]
    assert old.manifest.grown is not None
    assert old.manifest.grown.triples["train"] == 4


def test_classes_of_old_and_new_entities_are_joined(tmp_path: Path) -> None:
    old = base(tmp_path, entity_types="a\tcity\nb\tcity\nb\tport\n", relation_domain_range="r\tcity\tport\n")
    new = write(
        tmp_path / "new", train="d\tq\ta\n", entity_types="d\triver\n", relation_domain_range="q\triver\tcity\n"
    )
    extend_store(old, str(new), str(tmp_path / "grown"))
    grown = Store.open(str(tmp_path / "grown"))
    classes = grown.classes()
    assert classes is not None
    names = classes.labels.to_pylist()
    first = dict(zip(grown.entity_labels().to_pylist(), classes.first.tolist(), strict=True))
    assert {label: names[kind] if kind >= 0 else None for label, kind in first.items()} == {
        "a": "city", "b": "city", "c": None, "d": "river",
    }  # fmt: skip
    assert [names[kind] if kind >= 0 else None for kind in classes.required] == [
        "port",
        None,
        "city",
        "city",
        None,
        "river",
    ]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 14), st.integers(0, 5), st.integers(0, 14)), min_size=1, max_size=30),
)
def test_the_facts_are_those_of_both(
    tmp_path_factory: pytest.TempPathFactory, old: list[tuple[int, int, int]], new: list[tuple[int, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("grown")
    lines = ["".join(f"e{h}\tr{r}\te{t}\n" for h, r, t in each) for each in (old, new)]
    write(folder, old=lines[0], new=lines[1])
    prepare(str(folder / "old.tsv"), str(folder / "base"), split=(1.0, 0.0, 0.0))
    before = Store.open(str(folder / "base"))
    if set(new) <= set(old):
        with pytest.raises(IngestError, match=r"new\.tsv: no new facts, as all are in store"):
            extend_store(before, str(folder / "new.tsv"), str(folder / "grown"))
        assert not (folder / "grown").exists()
        return
    extend_store(before, str(folder / "new.tsv"), str(folder / "grown"))
    grown = Store.open(str(folder / "grown"))
    expected = {(f"e{h}", f"r{r}", f"e{t}") for h, r, t in [*old, *new]}
    assert set(facts(grown, "train")) == expected
    assert len(facts(grown, "train")) == len(expected)
    assert grown.entity_labels().to_pylist()[: before.num_entities] == before.entity_labels().to_pylist()
    assert grown.manifest.grown is not None
    first = grown.manifest.grown.triples["train"]
    assert facts(grown, "train")[:first] == facts(before, "train")
    assert not set(facts(grown, "train")[first:]) & set(facts(before, "train"))


def test_triples_are_read_from_a_row_on(tmp_path: Path) -> None:
    store = base(tmp_path)
    every = store.triples("train")
    for first in range(4):
        for size in (1, 2, 5):
            np.testing.assert_array_equal(
                np.concatenate([np.empty((0, 3)), *store.iter_triples(["train"], size, first)]), every[first:]
            )
        for parts in (1, 2, 3):
            for part in range(parts):
                np.testing.assert_array_equal(
                    store.triples_part("train", part, parts, first), every[first:][part::parts]
                )


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({"facts": ""}, "facts.tsv", r"facts\.tsv:1: the file holds no triples"),
        ({"facts": "a\tr\n"}, "facts.tsv", r"facts\.tsv:1: "),
        ({"facts": TRAIN}, "facts.tsv", r"facts\.tsv: no new facts, as all are in store .*base already"),
        ({"facts": TRAIN}, "none.tsv", r"there is no file or folder .*none\.tsv"),
        ({"facts": TRAIN}, "", r"holds no file train, valid or test of new facts; it holds facts\.tsv"),
        ({"train": "d\tr\ta\n", "valid": ""}, "", r"valid\.tsv:1: the file holds no triples"),
    ],
)
def test_sources_that_cannot_be_used_are_refused(
    tmp_path: Path, files: dict[str, str], source: str, message: str
) -> None:
    new = write(tmp_path / "new", **files)
    with pytest.raises(IngestError, match=message):
        extend_store(base(tmp_path), str(new / source if source else new), str(tmp_path / "grown"))
    assert not (tmp_path / "grown").exists()


def test_a_store_is_never_overwritten(tmp_path: Path) -> None:
    old = base(tmp_path)
    new = write(tmp_path / "new", facts="d\tr\ta\n") / "facts.tsv"
    with pytest.raises(StoreError, match="already holds a finished store"):
        extend_store(old, str(new), str(tmp_path / "base"))
    assert facts(Store.open(str(tmp_path / "base")), "train") == [("a", "r", "b"), ("b", "r", "c"), ("c", "s", "a")]


@pytest.mark.parametrize("key", ["entities", "relations"])
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, key: str) -> None:
    extend_store(base(tmp_path), str(write(tmp_path / "new", facts="d\tr\ta\n") / "facts.tsv"), str(tmp_path / "grown"))
    file = tmp_path / "grown" / MANIFEST
    tree = json.loads(file.read_text())
    tree["grown"][key] = 99
    file.write_text(json.dumps(tree))
    with pytest.raises(StoreError, match=re.escape(f"grown.{key} is 99, and the store has")):
        Store.open(str(tmp_path / "grown"))
