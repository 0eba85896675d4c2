"""Which files of two stores agree, and what is said where they do not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from distkg.data.prepare import prepare
from distkg.data.readers.sources import ReadOptions
from distkg.data.store.graph_store import Store
from distkg.data.store.identity import StoreIdentity, StoreMismatchError, check_store

TRAIN = "a\tlikes\tb\nb\tlikes\tc\nc\tknows\ta\na\tknows\tc\nd\tlikes\ta\n"


def made(folder: Path, name: str, *, seed: int = 0, test: str = "a\tlikes\tc\n", train: str = TRAIN) -> Store:
    source = folder / f"{name}-source"
    source.mkdir()
    (source / "train.tsv").write_text(train)
    (source / "test.tsv").write_text(test)
    prepare(str(source), str(folder / name), seed=seed)
    return Store.open(str(folder / name))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return made(tmp_path, "first")


def test_the_same_files_make_the_same_store_again(store: Store, tmp_path: Path) -> None:
    again = StoreIdentity.of(made(tmp_path, "again"))
    assert StoreIdentity.of(store).difference(again, "everything") is None


def test_an_identity_is_that_of_the_manifest(store: Store) -> None:
    found = StoreIdentity.of(store)
    assert (found.entities, found.relations, found.address) == (4, 2, store.address)
    assert set(found.files) >= {"entities.parquet", "relations.parquet", "train.parquet", "test.parquet"}
    assert found.files["entities.parquet"] == store.manifest.files["entities.parquet"].sha256


@pytest.mark.parametrize(
    ("changed", "labels", "graph"),
    [
        ({"seed": 1}, "entities.parquet", "entities.parquet"),
        ({"test": "b\tlikes\ta\n"}, None, "test.parquet"),
        ({"train": TRAIN.replace("knows", "hates")}, "relations.parquet", "relations.parquet"),
        ({"train": TRAIN + "b\tknows\td\n"}, None, "train.parquet"),
    ],
    ids=["another order", "another test split", "another relation", "another fact"],
)
def test_the_first_file_that_differs_is_named(
    store: Store, tmp_path: Path, changed: dict[str, str], labels: str | None, graph: str
) -> None:
    other = made(tmp_path, "other", **changed)  # type: ignore[arg-type]
    recorded = StoreIdentity.of(store)
    assert recorded.difference(StoreIdentity.of(other), "labels") == labels
    assert recorded.difference(StoreIdentity.of(other), "graph") == graph
    with pytest.raises(StoreMismatchError, match=rf"^{graph} of store .*other differs.*run r was trained on.*first"):
        check_store(recorded, other, "graph", "run r")


def test_a_moved_store_is_the_same_store(store: Store, tmp_path: Path) -> None:
    recorded = StoreIdentity.of(store)
    shutil.move(tmp_path / "first", tmp_path / "elsewhere")
    check_store(recorded, Store.open(str(tmp_path / "elsewhere")), "everything", "run r")


def test_a_file_that_was_added_later_does_not_make_another_graph(store: Store, tmp_path: Path) -> None:
    before = StoreIdentity.of(store, ["relation_text.parquet"])
    assert "relation_text.parquet" not in before.files
    (tmp_path / "first" / "relation_text.parquet").write_bytes(b"vectors")
    after = StoreIdentity.of(store, ["relation_text.parquet"])
    assert before.difference(after, "graph") is None
    assert before.difference(after, "everything") == "relation_text.parquet"
    assert before.only_differs_beside(after) == ["relation_text.parquet"]


def test_rejected_lines_are_no_part_of_a_graph(tmp_path: Path) -> None:
    source = tmp_path / "graph.tsv"
    source.write_text("".join(f"e{i}\tr\te{(i * 7 + 1) % 50}\n" for i in range(50)) + "only two\tcolumns\n")
    prepare(str(source), str(tmp_path / "a"), ReadOptions(on_error="skip"))
    opened = Store.open(str(tmp_path / "a"))
    assert "rejects.tsv" in opened.manifest.files
    assert "rejects.tsv" not in StoreIdentity.of(opened).files


def test_secrets_of_an_address_are_not_recorded(store: Store) -> None:
    store.address = "s3://user:pass@bucket/graph?region=eu-west-1&secret=x"
    assert StoreIdentity.of(store).address == "s3://bucket/graph"
