"""Tokens in a store: what is written comes back by rows, and what does not fit the store is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_store import small_store

from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store, StoreError
from distkg.data.tokens.token_store import read_modalities, read_modality, write_modality

ROWS = np.array([[0, 2], [1, -1], [-1, -1], [0, 1]], np.int32)
CODEBOOK = np.array([[1.0, 0.5], [0.0, -2.0], [0.1, 3.0]])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return small_store(tmp_path)


def write(store: Store, name: str = "text", rows: np.ndarray = ROWS, codebook: np.ndarray = CODEBOOK) -> None:
    write_modality(store, name, [rows[:1], rows[1:]], rows.shape[1], codebook, "a test")


def test_what_is_written_is_read(store: Store) -> None:
    assert read_modalities(store) == {}
    write(store)
    found = read_modalities(store)
    assert list(found) == ["text"]
    text = found["text"]
    assert (text.entities, text.tokens, text.covered, text.vocabulary, text.width) == (4, 2, 3, 3, 2)
    assert text.description.source == "a test"
    assert text.rows().tolist() == ROWS.tolist()
    assert text.rows(1, 3).tolist() == [[1, -1], [-1, -1]]
    assert text.rows(4, 4).shape == (0, 2)
    assert text.codebook().dtype == np.float16
    assert text.codebook().tolist() == [[1.0, 0.5], [0.0, -2.0], [float(np.float16(0.1)), 3.0]]
    text.verify()
    Store.open(store.address).verify()


def test_modalities_lie_side_by_side_and_one_is_replaced(store: Store) -> None:
    write(store, "text")
    write(store, "image", ROWS[:, ::-1].copy(), CODEBOOK[:, :1])
    write(store, "text", np.full((4, 1), 2, np.int32))
    assert {name: each.rows()[0].tolist() for name, each in read_modalities(store).items()} == {
        "image": [2, 0],
        "text": [2],
    }
    read_modality(store, "text").verify()
    with pytest.raises(StoreError, match=r"no tokens 'numeric'; it has image, text"):
        read_modality(store, "numeric")


def test_stores_with_one_codebook_say_so(tmp_path: Path) -> None:
    stores = [small_store(tmp_path / name) for name in ("a", "b") if (tmp_path / name).mkdir() is None]
    write(stores[0])
    write(stores[1], "words", ROWS[::-1])
    write(stores[1], "other", codebook=CODEBOOK + 1)
    one, same, other = (
        read_modality(*each) for each in zip((stores[0], stores[1], stores[1]), ("text", "words", "other"), strict=True)
    )
    assert one.codebook_id == same.codebook_id != other.codebook_id
    assert len(list((tmp_path / "b" / "store" / "tokens" / "codebooks").iterdir())) == 2


def test_tokens_of_an_earlier_store_are_refused(tmp_path: Path) -> None:
    write(small_store(tmp_path))
    shutil.move(tmp_path / "store" / "tokens", tmp_path / "tokens")
    shutil.rmtree(tmp_path / "store")
    prepare(str(tmp_path / "facts.tsv"), str(tmp_path / "store"), split=(1.0, 0.0, 0.0), seed=1)
    shutil.move(tmp_path / "tokens", tmp_path / "store" / "tokens")
    with pytest.raises(StoreError, match=r"'text' of store .* another order of them.*distkg tokens"):
        read_modalities(Store.open(str(tmp_path / "store")))


@pytest.mark.parametrize(
    ("name", "rows", "codebook", "message"),
    [
        ("../x", ROWS, CODEBOOK, "cannot name tokens"),
        ("text", ROWS, CODEBOOK[:2], "token 2 is not in the codebook, whose tokens are 0 to 1"),
        ("text", ROWS, CODEBOOK * 1e5, "vector of token 0 is not finite, or too large for float16"),
        ("text", ROWS, np.array([[1.0], [np.nan], [0.0]]), "vector of token 1 is not finite"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    store: Store, name: str, rows: np.ndarray, codebook: np.ndarray, message: str
) -> None:
    write(store)
    with pytest.raises(StoreError, match=message):
        write(store, name, rows, codebook)
    assert read_modality(store, "text").rows().tolist() == ROWS.tolist()  # what was there stays
    kept = {path.name for path in (Path(store.address) / "tokens").iterdir()}
    assert kept == {"text.json", "text.safetensors", "codebooks"}


def test_damage_is_found(store: Store) -> None:
    write(store)
    folder, text = Path(store.address) / "tokens", read_modality(store, "text")
    (codebook,) = (folder / "codebooks").iterdir()
    for file in (folder / "text.safetensors", codebook):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + b"\x7f")
        with pytest.raises(StoreError, match=rf"{file.name} cannot be used: it differs from its checksum in text.json"):
            text.verify()
        file.write_bytes(content)
    codebook.unlink()
    with pytest.raises(StoreError, match="cannot be used"):
        text.codebook()
    description = json.loads((folder / "text.json").read_text())
    (folder / "text.json").write_text(json.dumps({**description, "tokens": 5}))
    with pytest.raises(StoreError, match="4 × 2 instead of 4 × 5"):
        read_modality(store, "text").rows()
    (folder / "text.json").write_text(json.dumps({**description, "format_version": 2}))
    with pytest.raises(StoreError, match=r"format version 2\. Upgrade distkg"):
        read_modalities(store)
    (folder / "text.json").write_text("{}")
    with pytest.raises(StoreError, match=r"text.json cannot be read"):
        read_modalities(store)


def test_in_a_bucket_as_on_disk(bucket: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "facts.tsv").write_text("a\tr\tb\nc\tr\td\n")
    prepare(str(tmp_path / "facts.tsv"), bucket("graph"), split=(1.0, 0.0, 0.0))
    store = Store.open(bucket("graph"))
    write(store)
    write(store)
    text = read_modality(Store.open(bucket("graph")), "text")
    assert text.rows(3, 4).tolist() == [[0, 1]]
    assert text.codebook()[1].tolist() == [0.0, -2.0]
    text.verify()
