"""What files say of entities, in the order of a store's ids."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_store import small_store

from distkg.data.errors import IngestError
from distkg.data.store.graph_store import Store
from distkg.data.tokens.entity_values import (
    EntityValues,
    by_entity,
    find_images,
    labels_as_texts,
    read_keys,
    read_numbers,
    read_texts,
    read_token_lists,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return small_store(tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    def write(content: str | bytes, name: str = "said.tsv") -> str:
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(tmp_path / name)

    return write


def of_labels(store: Store, found: EntityValues) -> dict[str, list[object]]:
    return dict(zip(store.entity_labels().to_pylist(), found.values.to_pylist(), strict=True))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 99)), max_size=30))
def test_values_go_to_their_entities_in_their_order(pairs: list[tuple[int, int]]) -> None:
    entity, value = np.array(pairs, np.int64).reshape(-1, 2).T
    found = by_entity(entity, pa.array(value), 6)
    assert found.to_pylist() == [[v for e, v in pairs if e == one] for one in range(6)]


@pytest.mark.parametrize("name", ["said.tsv", "said.tsv.gz"])
def test_texts_of_labels(store: Store, file: Callable[..., str], name: str) -> None:
    text = "paris\tParis\tcity in France\n\nno one\tNobody\nada\tA mathematician\r\nada\tAda Lovelace\nbob\t\nx\ty\n"
    found = read_texts(store, file(text, name))
    assert of_labels(store, found) == {
        "ada": ["A mathematician", "Ada Lovelace"],
        "bob": [""],
        "paris": ["Paris city in France"],
        "/m/oslo": [],
    }
    assert (found.unknown, found.example) == (2, "no one")


def test_keys_of_a_files_own(store: Store, file: Callable[..., str]) -> None:
    keys = read_keys(file("3\nhttp://x/A ada\nhttp://x/B bob\nQ 9\t/m/oslo\n", "entity2id.txt"))
    assert keys == {"http://x/A": "ada", "http://x/B": "bob", "Q 9": "/m/oslo"}
    found = read_texts(store, file("http://x/B\tBob\nada\tno key\n"), keys)
    assert of_labels(store, found)["bob"] == ["Bob"]
    assert (found.unknown, found.example) == (1, "ada")
    with pytest.raises(IngestError, match=r"entity2id.txt:2: a key, a tab and a label"):
        read_keys(file("a b\nalone\n", "entity2id.txt"))
    for content in ("", "0\n"):
        with pytest.raises(IngestError, match=r"entity2id.txt has no lines KEY<TAB>LABEL"):
            read_keys(file(content, "entity2id.txt"))
    for known, said in (({"k": "bob"}, r"its first is 'eve' \(--ids has no such key\)"), ({"eve": "x"}, "says 'x'")):
        with pytest.raises(IngestError, match=said):
            read_texts(store, file("eve\tEve\n"), known)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ada\tfine\nbob lacks a tab\n", r"said.tsv:2: a label, a tab and a text are expected: 'bob lacks a tab'"),
        (b"ada\tfine\n\nbob\t\xff\n", r"said.tsv:3: bytes that are not UTF-8 \(byte 5"),
        ("eve\tx\n", r"said.tsv names no entity of the store: its first is 'eve', and the store's first is '"),
        ("", r"names no entity of the store: it is empty"),
    ],
)
def test_texts_that_cannot_be_used(store: Store, file: Callable[..., str], content: str, message: str) -> None:
    with pytest.raises(IngestError, match=message):
        read_texts(store, file(content))


def test_a_file_that_is_not_there(store: Store) -> None:
    for read in (read_texts, read_numbers):
        with pytest.raises(IngestError, match="there is no file /no/where"):
            read(store, "/no/where")


def test_labels_as_words(store: Store) -> None:
    assert of_labels(store, labels_as_texts(store))["/m/oslo"] == ["m oslo"]


def test_numbers(store: Store, file: Callable[..., str]) -> None:
    found = read_numbers(store, file("ada\tborn\t1815\nparis\tarea\t1.05e2\neve\tage\t3\nbob\tborn\t-7\n"))
    labels = store.entity_labels().to_pylist()
    said = [
        (labels[e], found.attributes[a], v) for e, a, v in zip(found.entity, found.attribute, found.value, strict=True)
    ]
    assert said == [("ada", "born", 1815.0), ("paris", "area", 105.0), ("bob", "born", -7.0)]
    assert (found.unknown, found.example) == (1, "eve")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ada\tborn\n", r"said.tsv:1: 2 columns where label, attribute and value are expected"),
        ("ada\tborn\t1\nada\tborn\tearly\n", r"said.tsv:2: 'early' is not a finite number"),
        ("ada\tborn\tnan\n", r"said.tsv:1: 'nan' is not a finite number"),
    ],
)
def test_numbers_that_cannot_be_used(store: Store, file: Callable[..., str], content: str, message: str) -> None:
    with pytest.raises(IngestError, match=message):
        read_numbers(store, file(content))


@pytest.mark.parametrize("name", ["x.json", "x.json.gz", "x.json.zip"])
def test_tokens_that_others_made(store: Store, tmp_path: Path, file: Callable[..., str], name: str) -> None:
    text = json.dumps({"bob": [5, 5, 1], "eve": [2], "ada": [], "paris": [0]})
    if name.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as zipped:
            zipped.writestr("x.json", text)
            zipped.writestr("__MACOSX/._x", "")
    else:
        file(text, name)
    found = read_token_lists(store, str(tmp_path / name), 6)
    assert of_labels(store, found) == {"ada": [], "bob": [5, 5, 1], "paris": [0], "/m/oslo": []}
    assert (found.unknown, found.example) == (1, "eve")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"bob": [1, 2]}', r"said.json: 'bob' has token 2; the codebook has 0 to 1"),
        ('{"bob": [-1]}', r"said.json: 'bob' has token -1; the codebook has 0 to 1"),
        ('{"bob": "12"}', r"said.json: 'bob' needs a list of token ids: 12"),
        ('{"bob": [1.5]}', r"said.json: 'bob' needs a list of token ids"),
        ('{"bob": [[1], [0]]}', r"said.json: 'bob' needs a list of token ids"),
        ("[1]", r"said.json: a JSON object \{key: \[token, …\]\} is expected"),
        ('{"bob": [1],\n"ada": [1}', r"said.json:2: invalid JSON"),
        ('{"eve": [1]}', r"said.json names no entity"),
    ],
)
def test_tokens_that_cannot_be_used(store: Store, file: Callable[..., str], content: str, message: str) -> None:
    with pytest.raises(IngestError, match=message):
        read_token_lists(store, file(content, "said.json"), 2)


def test_images_by_file_and_by_folder(store: Store, tmp_path: Path) -> None:
    images = tmp_path / "images"
    for name in ("bob.png", "ada/2.jpg", "ada/1.jpg", "%2Fm%2Foslo.jpeg", "eve.png", ".hidden.png", "ada/.hidden"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).touch()
    found = find_images(store, images)
    assert of_labels(store, found) == {
        "ada": [str(images / "ada" / "1.jpg"), str(images / "ada" / "2.jpg")],
        "bob": [str(images / "bob.png")],
        "/m/oslo": [str(images / "%2Fm%2Foslo.jpeg")],
        "paris": [],
    }
    assert (found.unknown, found.example) == (1, "eve")
    with pytest.raises(IngestError, match="no folder of images"):
        find_images(store, tmp_path / "absent")


@pytest.mark.parametrize("number", ["nan", "inf", "1e400", "1_000", "٣", "0x10", ""])
def test_a_number_is_written_in_one_way(store: Store, file: Callable[..., str], number: str) -> None:
    with pytest.raises(IngestError, match=r"said\.tsv:1: .* is not a finite number"):
        read_numbers(store, file(f"bob\theight\t{number}\n"))


def test_a_key_of_two_labels_is_refused_by_line(file: Callable[..., str]) -> None:
    assert read_keys(file("k\tbob\nk\tbob\n")) == {"k": "bob"}
    with pytest.raises(IngestError, match=r"said\.tsv:2: key 'k' has the label 'ada', and another one in an earlier"):
        read_keys(file("k\tbob\nk\tada\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"bob": [1], "bob": [2]}', "key 'bob' occurs twice"),
        ('{"bob": [true]}', "needs a list of token ids"),
        ('{"bob": [1.0]}', "needs a list of token ids"),
        ('{"bob": [[1]]}', "needs a list of token ids"),
        ('{"bob": [99999999999999999999]}', "has token 99999999999999999999; the codebook has 0 to 5"),
        (r'{"\ud800": [1]}', "half a character"),
    ],
)
def test_token_lists_of_another_form_are_named(
    store: Store, file: Callable[..., str], content: str, message: str
) -> None:
    with pytest.raises(IngestError, match=message) as caught:
        read_token_lists(store, file(content, "said.json"), 6)
    assert "said.json" in str(caught.value)


def test_a_zip_file_that_needs_a_password_or_is_cut_off_is_named(store: Store, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped:
        zipped.writestr("x.json", '{"bob": [1]}')
    content = bytearray((tmp_path / "x.zip").read_bytes())
    for place in (content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8):
        content[place] |= 1  # says that the entry is encrypted
    (tmp_path / "locked.zip").write_bytes(content)
    (tmp_path / "cut.zip").write_bytes(content[:20])
    for name in ("locked.zip", "cut.zip"):
        with pytest.raises(IngestError, match=f"{name} cannot be read"):
            read_token_lists(store, str(tmp_path / name), 6)


def test_an_image_whose_name_is_no_text_is_named(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    try:
        (folder / "bob\udce9.jpg").touch()
    except (OSError, UnicodeError):
        pytest.skip("this file system takes names of Unicode alone")
    with pytest.raises(IngestError, match="the name of this image is not UTF-8"):
        find_images(store, folder)
