import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store, StoreError

LINES = {
    "train": ["ada\tknows\tbob", "bob\tknows\tcid", "cid\tlikes\tada", "ada\tlikes\tada", "bob\tlikes\tcid"],
    "valid": ["cid\tknows\tbob"],
    "test": ["ada\tknows\tcid", "bob\tknows\tada"],
}


@pytest.fixture
def address(tmp_path: Path) -> str:
    folder = tmp_path / "files"
    folder.mkdir()
    for split, lines in LINES.items():
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    prepare(str(folder), str(tmp_path / "store"))
    return str(tmp_path / "store")


def labelled(store: Store, triples: np.ndarray) -> list[str]:
    heads, tails = store.entity_labels_of(triples[:, 0]), store.entity_labels_of(triples[:, 2])
    relations = store.relation_labels().take(triples[:, 1]).to_pylist()
    return ["\t".join(labels) for labels in zip(heads, relations, tails, strict=True)]


def test_what_went_in_comes_out(address: str) -> None:
    store = Store.open(address)
    assert (store.num_entities, store.num_relations) == (3, 2)
    assert store.manifest.triples == {"train": 5, "valid": 1, "test": 2}
    for split, lines in LINES.items():
        triples = store.triples(split)
        assert triples.dtype == np.int32
        assert labelled(store, triples) == lines
    assert store.relation_labels().to_pylist() == ["knows", "likes"]
    assert sorted(store.entity_labels().to_pylist()) == ["ada", "bob", "cid"]


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_parts_are_every_nth_row(address: str, parts: int, batch_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(address)
    whole = store.triples("train").tolist()
    small_batches: Callable[..., object] = store.iter_triples
    monkeypatch.setattr(store, "iter_triples", lambda splits, **more: small_batches(splits, batch_rows, **more))
    for part in range(parts):
        assert store.triples_part("train", part, parts).tolist() == whole[part::parts]


def test_batches_run_over_splits(address: str) -> None:
    store = Store.open(address)
    batches = list(store.iter_triples(["test", "train"], batch_rows=2))
    assert [len(batch) for batch in batches] == [2, 2, 2, 1]
    assert labelled(store, np.concatenate(batches)) == LINES["test"] + LINES["train"]


def test_labels_and_ids_are_inverse(address: str) -> None:
    store = Store.open(address)
    assert [store.entity_id(label) for label in store.entity_labels().to_pylist()] == [0, 1, 2]
    assert (store.relation_id("knows"), store.relation_id("likes")) == (0, 1)


def test_an_unknown_label_answers_with_close_ones(address: str) -> None:
    store = Store.open(address)
    with pytest.raises(StoreError, match=r"no entity labelled 'adda'\. Close: 'ada'"):
        store.entity_id("adda")
    with pytest.raises(StoreError, match=r"no relation labelled 'know'\. Close: 'knows'"):
        store.relation_id("know")
    with pytest.raises(StoreError, match=r"no entity labelled 'xyz'\.$"):
        store.entity_id("xyz")


def test_close_labels_are_found_among_many(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distkg.data.store.graph_store.MOST_COMPARED", 2)
    with pytest.raises(StoreError, match=r"Close: 'ada'"):
        Store.open(address).entity_id("ADAm")


def test_degrees_count_train_alone(address: str) -> None:
    store = Store.open(address)
    degrees = store.degrees()
    assert degrees.dtype == np.int64
    assert {label: int(degrees[store.entity_id(label)]) for label in ("ada", "bob", "cid")} == {
        "ada": 4,
        "bob": 3,
        "cid": 3,
    }


def test_wrong_splits_and_parts_are_refused(address: str) -> None:
    store = Store.open(address)
    with pytest.raises(StoreError, match=r"no split 'dev'\. Known: train, valid, test"):
        store.triples("dev")
    with pytest.raises(ValueError, match="part 2 of 2"):
        store.triples_part("train", 2, 2)


def test_nothing_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store at .*none\. Make one with `distkg prepare"):
        Store.open(str(tmp_path / "none"))
    with pytest.raises(StoreError, match="there is no store at"):
        Store.open(str(tmp_path))


def test_a_store_of_a_later_schema_is_refused(address: str) -> None:
    manifest = Path(address) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(StoreError, match=r"has schema version 99; this distkg reads up to 1"):
        Store.open(address)


def test_verify_names_the_file_that_differs(address: str) -> None:
    Store.open(address).verify()
    path = Path(address) / "test.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"test\.parquet of store .* differs from its checksum"):
        Store.open(address).verify()
    path.unlink()
    with pytest.raises(StoreError, match=r"test\.parquet of store .* cannot be read"):
        Store.open(address).verify()


def test_a_damaged_file_is_named_when_it_is_read(address: str) -> None:
    (Path(address) / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"train\.parquet of store .* cannot be read .*`distkg prepare`"):
        Store.open(address).triples("train")


def test_rows_missing_from_a_file_are_noticed(address: str) -> None:
    path = Path(address) / "manifest.json"
    tree = json.loads(path.read_text())
    tree["triples"]["train"] = 6
    path.write_text(json.dumps(tree))
    with pytest.raises(StoreError, match=r"train\.parquet .* does not hold the rows of its manifest"):
        Store.open(address).triples("train")
