"""Stores of induced subgraphs, by labels against the store that they are taken from."""

from pathlib import Path

import numpy as np
import pytest

from distkg.data.errors import StoreError
from distkg.data.prepare import prepare
from distkg.data.splits.induced_subgraph import count_induced, write_induced_subgraph
from distkg.data.store.graph_store import Store

TRAIN = "a\tr\tb\nb\tr\tc\nc\ts\ta\nc\tt\td\nd\tr\te\n"
VALID, TEST = "a\ts\tb\na\tr\te\n", "b\tt\td\n"
CLASSES = "a\tletter\na\tvowel\nc\tletter\ne\tvowel\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    source = tmp_path / "source"
    source.mkdir()
    for name, text in (("train", TRAIN), ("valid", VALID), ("test", TEST), ("entity_types", CLASSES)):
        (source / f"{name}.tsv").write_text(text)
    (source / "relation_domain_range.tsv").write_text("r\tletter\tvowel\n")
    prepare(str(source), str(tmp_path / "store"))
    return Store.open(str(tmp_path / "store"))


def facts(store: Store, split: str) -> list[str]:
    entities, relations = store.entity_labels().to_pylist(), store.relation_labels().to_pylist()
    return [f"{entities[h]} {relations[r]} {entities[t]}" for h, r, t in store.triples(split).tolist()]


def mask(store: Store, labels: str) -> np.ndarray:
    return np.array([label in labels for label in store.entity_labels().to_pylist()])


def test_a_subgraph_keeps_the_facts_between_its_entities(store: Store, tmp_path: Path) -> None:
    part = write_induced_subgraph(store, mask(store, "acd"), str(tmp_path / "part"), "2-core")
    assert facts(part, "train") == [fact for fact in facts(store, "train") if not {"b", "e"} & set(fact.split())]
    assert sorted(facts(part, "train")) == ["c s a", "c t d"]
    assert facts(part, "valid") == facts(part, "test") == []
    # Entities stay in their order, relations keep their ids even without a fact.
    kept = [label for label in store.entity_labels().to_pylist() if label in "acd"]
    assert part.entity_labels().to_pylist() == kept
    assert part.relation_labels().to_pylist() == store.relation_labels().to_pylist()
    assert (part.manifest.partition_offsets, part.manifest.seed) == ([0, 3], store.manifest.seed)
    assert part.manifest.source == f"2-core of {tmp_path / 'store'}"
    part.verify()


def test_counts_of_a_subgraph_need_no_store(store: Store) -> None:
    kept = mask(store, "abc")
    assert [count_induced(store, split, kept) for split in ("train", "valid", "test")] == [3, 1, 0]


def test_classes_of_a_subgraph_are_those_of_its_entities(store: Store, tmp_path: Path) -> None:
    part = write_induced_subgraph(store, mask(store, "ace"), str(tmp_path / "part"), "part")
    classes, labels = part.classes(), part.entity_labels().to_pylist()
    assert classes is not None
    names = classes.labels.to_pylist()
    members = {
        label: [names[kind] for kind in classes.members[classes.offsets[i] : classes.offsets[i + 1]]]
        for i, label in enumerate(labels)
    }
    assert members == {"a": ["letter", "vowel"], "c": ["letter"], "e": ["vowel"]}
    relation = part.relation_labels().to_pylist().index("r")
    assert [names[kind] for kind in classes.required[[relation, relation + part.num_relations]]] == ["vowel", "letter"]


def test_a_finished_store_is_not_replaced(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="already holds a finished store"):
        write_induced_subgraph(store, mask(store, "a"), store.address, "part")
