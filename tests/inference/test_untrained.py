"""Entities and relations that no training fact mentions are named before their answers are believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store
from distkg.inference.untrained import untrained, untrained_warnings

TRAIN = "a\tlikes\tb\nb\tlikes\tc\nc\tknows\ta\n"
TEST = "a\thates\tb\nnew\tlikes\ta\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    folder = tmp_path / "graph"
    folder.mkdir()
    (folder / "train.tsv").write_text(TRAIN)
    (folder / "test.tsv").write_text(TEST)
    prepare(str(folder), str(tmp_path / "store"))
    return Store.open(str(tmp_path / "store"))


def test_what_training_has_never_seen(store: Store) -> None:
    everyone = np.arange(store.num_entities)
    entities, relations = untrained(store, everyone, np.arange(2 * store.num_relations))
    assert entities.tolist() == [store.entity_id("new")]
    assert relations.tolist() == [store.relation_id("hates")]  # once, though its inverse was asked too
    assert untrained_warnings(store, everyone, [store.relation_id("hates")]) == [
        "relation 'hates' occurs in no training fact, so the model has not learned it: the answers are meaningless",
        "entity 'new' occurs in no training fact, so the model has not learned it: the answers are meaningless",
    ]


def test_what_training_has_seen_needs_no_word(store: Store) -> None:
    known = [store.entity_id(label) for label in "abc"]
    relations = [store.relation_id("likes"), store.relation_id("knows") + store.num_relations]
    assert untrained_warnings(store, known, relations) == []


def test_many_are_counted_and_three_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    (folder / "train.tsv").write_text("a\tlikes\tb\n")
    (folder / "valid.tsv").write_text("".join(f"a\tr{i}\tb\n" for i in range(5)))
    prepare(str(folder), str(tmp_path / "store"))
    store = Store.open(str(tmp_path / "store"))
    (warning,) = untrained_warnings(store, [], [store.relation_id(f"r{i}") for i in range(5)])
    assert warning.startswith("5 relations ('r")
    assert warning.count("'r") == 3
    assert ", …) occur in no training fact" in warning
