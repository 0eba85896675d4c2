"""Folders of two graphs become two stores, by the protocol that their files tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from distkg.data.errors import IngestError, StoreError
from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def folder_of(tmp_path: Path, **files: str) -> str:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.tsv").write_text(text)
    return str(folder)


TWO = {
    "train": "a\tr\tb\nb\ts\tc\n",
    "inference": "x\tr\ty\ny\tt\tz\n",
    "valid": "x\tr\tz\n",
    "test": "z\tr\tx\nx\tr\tz\n",
}


def counts(store: Store) -> tuple[int, int, dict[str, int]]:
    return store.num_entities, store.num_relations, store.manifest.triples


def test_with_ingrams_files_everything_is_asked_of_the_other_graph(tmp_path: Path) -> None:
    report = prepare(folder_of(tmp_path, **TWO), str(tmp_path / "store"))
    training, inference = (Store.open(str(tmp_path / "store" / name)) for name in ("training", "inference"))
    assert counts(training) == (3, 2, {"train": 2, "valid": 0, "test": 0})
    assert counts(inference) == (3, 2, {"train": 2, "valid": 1, "test": 2})
    assert sorted(inference.relation_labels().to_pylist()) == ["r", "t"]
    assert report.triples == inference.manifest.triples
    assert report.training_graph is not None
    assert report.training_graph.triples == training.manifest.triples
    assert report.examples["valid_test_overlap"] == "test.tsv:2 is also valid.tsv:1"


def test_with_grails_files_valid_and_test_are_asked_together(tmp_path: Path) -> None:
    files = {**TWO, "train_valid": "a\tr\tc\n", "train_test": "c\tr\ta\nc\ts\tb\n"}
    report = prepare(folder_of(tmp_path, **files), str(tmp_path / "store"))
    training, inference = (Store.open(str(tmp_path / "store" / name)) for name in ("training", "inference"))
    assert counts(training) == (3, 2, {"train": 2, "valid": 1, "test": 2})
    # One of the three triples is in both files, so it is asked once.
    assert counts(inference) == (3, 2, {"train": 2, "valid": 0, "test": 2})
    assert report.examples["test_duplicates"] == "test.tsv:2 repeats valid.tsv:1"


def test_a_folder_of_two_stores_says_which_there_are(tmp_path: Path) -> None:
    prepare(folder_of(tmp_path, **TWO), str(tmp_path / "store"))
    with pytest.raises(StoreError, match=r"two stores: open .*store/training or .*store/inference"):
        Store.open(str(tmp_path / "store"))
    asked = Store.open_inference(str(tmp_path / "store"))
    assert asked.address == str(tmp_path / "store" / "inference")
    assert Store.open_inference(asked.address).address == asked.address


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    files = {name: text for name, text in TWO.items() if name != "valid"} | {"train_test": "a\tr\tc\n"}
    with pytest.raises(IngestError, match="no file for train_valid, valid"):
        prepare(folder_of(tmp_path, **files), str(tmp_path / "store"))


def test_other_files_for_splits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.tsv").write_text("a\tr\tb\n")
    with pytest.raises(IngestError, match="leave out --valid and --test"):
        prepare(folder_of(tmp_path, **TWO), str(tmp_path / "store"), test=str(tmp_path / "other.tsv"))


@pytest.mark.parametrize(
    ("name", "training", "inference"),
    [
        ("GraIL-FB15k-237-v1", (1594, 180, 4245), (1093, 142, {"train": 1993, "valid": 0, "test": 411})),
        ("InGram-NL-50", (4396, 106, 17578), (2335, 119, {"train": 2576, "valid": 859, "test": 859})),
    ],
)
def test_real_sets_have_their_published_counts(
    tmp_path: Path, name: str, training: tuple[int, int, int], inference: tuple[int, int, dict[str, int]]
) -> None:
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is not there")
    prepare(str(SHARED / name), str(tmp_path / "store"))
    learned = Store.open(str(tmp_path / "store" / "training"))
    assert (learned.num_entities, learned.num_relations, learned.manifest.triples["train"]) == training
    assert counts(Store.open(str(tmp_path / "store" / "inference"))) == inference
