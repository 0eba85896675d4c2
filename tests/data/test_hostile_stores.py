"""Stores that somebody else made: they open with the content that their files hold, or are refused with one message."""

import copy
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unsafe_text import LABELS

from distkg.data.errors import StoreError
from distkg.data.store.graph_store import Store
from distkg.data.tokens.token_store import read_modalities, write_modality


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with classes and tokens."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "files").mkdir()
    from distkg.data.prepare import prepare

    facts = [f"e{i}\tr{i % 3}\te{(5 * i + 1) % 40}" for i in range(40)]
    (folder / "files" / "train.tsv").write_text("\n".join(facts) + "\n")
    (folder / "files" / "valid.tsv").write_text("e1\tr0\te3\n")
    (folder / "files" / "entity_types.tsv").write_text("".join(f"e{i}\tk{i % 2}\n" for i in range(40)))
    (folder / "files" / "relation_domain_range.tsv").write_text("r0\tk0\tk1\n")
    prepare(str(folder / "files"), str(folder / "store"))
    store = Store.open(str(folder / "store"))
    rows = np.array([[i % 5, -1] for i in range(40)], np.int32)
    write_modality(store, "text", [rows], 2, np.ones((5, 3), np.float32), "a test")
    return folder / "store"


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "store"))


def content_of(folder: Path) -> list[Any]:
    """Everything that a store says."""
    store = Store.open(str(folder))
    classes = store.classes()
    return [
        [store.triples(split).tolist() for split in sorted(store.manifest.triples)],
        store.triples_part("train", 1, 3).tolist(),
        store.degrees().tolist(),
        (store.num_entities, store.num_relations),
        store.entity_labels().to_pylist(),
        store.relation_labels().to_pylist(),
        classes
        and (classes.labels.to_pylist(), classes.offsets.tolist(), classes.members.tolist(), classes.required.tolist()),
        {name: (each.rows().tolist(), each.codebook().tolist()) for name, each in read_modalities(store).items()},
    ]


def same_or_refused(folder: Path, expected: list[Any]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = content_of(folder)
    except StoreError:
        found = expected
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    assert found == expected


def rewritten(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads((store / "manifest.json").read_text())
    change(tree)
    (store / "manifest.json").write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(entities=10**12), r"entities: Input should be less than or equal to 2147483647"),
        (lambda m: m.update(entities=10**9), r"partition_offsets do not rise from 0 to 1000000000"),
        (lambda m: m.update(relations=10**9), r"relations\.parquet has 3 rows by its list of files and 1000000000"),
        (lambda m: m["triples"].update(train=10**12), r"train\.parquet .* does not hold the rows of its manifest"),
        (lambda m: m["triples"].update(extra=1), r"files: extra\.parquet is missing"),
        (lambda m: m["triples"].pop("train"), r"the split train is missing"),
        (lambda m: m["files"].pop("entities.parquet"), r"files: entities\.parquet is missing"),
        (lambda m: m["files"].pop("entity_classes.parquet"), r"files: entity_classes\.parquet is missing"),
        (lambda m: m["triples"].update({"../../etc/x": 0}), r"triples\.\.\./\.\./etc/x"),
        (lambda m: m["files"].update({"../x": m["files"]["train.parquet"]}), r"files\.\.\./x"),
        (lambda m: m["files"].update({"/etc/passwd": m["files"]["train.parquet"]}), r"files\./etc/passwd"),
        (lambda m: m["files"].update({"C:x": m["files"]["train.parquet"]}), r"files\.C:x"),
        (lambda m: m["files"].update({"..": m["files"]["train.parquet"]}), r"files\.\.\."),
        (lambda m: m.update(surprise=1), r"surprise: Extra inputs are not permitted"),
        (lambda m: m["files"]["train.parquet"].update(surprise=1), r"surprise: Extra inputs"),
        (lambda m: m.update(entities="40"), r"entities: Input should be a valid integer"),
        (lambda m: m.update(entities=True), r"entities: Input should be a valid integer"),
        (lambda m: m.update(entities=40.5), r"entities: Input should be a valid integer"),
        (lambda m: m.update(partition_offsets=[0, -3, 40]), r"partition_offsets do not rise"),
        (lambda m: m.update(partition_offsets=[]), r"partition_offsets do not rise"),
        (lambda m: m.update(seed=float("nan")), r"NaN"),
        (lambda m: m["files"]["train.parquet"].update(sha256="../x"), r"sha256"),
    ],
)
def test_a_manifest_that_says_too_much_is_refused(store: Path, change: Callable[[Any], object], message: str) -> None:
    rewritten(store, change)
    with pytest.raises(StoreError, match=message):
        Store.open(str(store))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"schema_version": 1, "schema_version": 1}', "twice"),
        (b'{"schema_version": ' + b"9" * 5000 + b"}", "integer"),
        (b'{"schema_version": 1, "entities": 1e999}', "too large"),
        (b" " * (17 << 20), "bytes"),
    ],
)
def test_json_that_no_writer_makes_is_refused(store: Path, content: bytes, message: str) -> None:
    (store / "manifest.json").write_bytes(content)
    with pytest.raises(StoreError, match=message):
        Store.open(str(store))


def test_counts_that_agree_with_each_other_are_held_against_the_files(store: Path) -> None:
    def claim(tree: dict[str, Any]) -> None:
        tree["entities"] = tree["files"]["entities.parquet"]["rows"] = tree["partition_offsets"][-1] = 2**31 - 1

    rewritten(store, claim)
    opened = Store.open(str(store))
    for ask in (lambda: opened.num_entities, opened.degrees, opened.entity_labels, opened.classes):
        with pytest.raises(StoreError, match=r"entities\.parquet of store .* does not hold the rows of its manifest"):
            ask()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("head", 40, "holds id 40, and ids go from 0 to 39"),
        ("head", -1, "holds id -1, and ids go from 0 to 39"),
        ("tail", 2**31 - 1, "holds id 2147483647"),
        ("tail", -(2**31), "holds id -2147483648"),
        ("relation", 3, "holds id 3, and ids go from 0 to 2"),
        ("relation", -1, "holds id -1"),
        ("head", None, "a row lacks a value"),
    ],
)
def test_ids_that_are_none_of_the_store_are_refused(store: Path, column: str, value: Any, message: str) -> None:
    table = pq.read_table(store / "train.parquet").to_pydict()
    table[column][7] = value
    pq.write_table(
        pa.table({name: pa.array(values, pa.int32()) for name, values in table.items()}), store / "train.parquet"
    )
    for ask in (lambda s: s.triples("train"), lambda s: s.triples_part("train", 0, 2), lambda s: s.degrees()):
        with pytest.raises(StoreError, match=rf"train\.parquet of store .* cannot be read \(.*{message}"):
            ask(Store.open(str(store)))


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("train", {"head": pa.array([0] * 40), "relation": pa.array([0] * 40), "tail": pa.array([0] * 40)}),
        ("train", {"head": pa.array([0] * 40, pa.int32()), "tail": pa.array([0] * 40, pa.int32())}),
        ("train", {"a": pa.array([0] * 40, pa.int32())}),
        ("train", dict.fromkeys(("head", "relation", "tail"), pa.array(["x"] * 40))),
        ("entities", {"id": pa.array(range(40), pa.int32()), "label": pa.array(range(40))}),
        ("entities", {"id": pa.array(range(40), pa.int32()), "label": pa.array([None] * 40, pa.utf8())}),
        ("entities", {"label": pa.array(["x"] * 40)}),
    ],
)
def test_files_of_other_columns_are_refused(store: Path, name: str, table: dict[str, pa.Array]) -> None:
    pq.write_table(pa.table(table), store / f"{name}.parquet")
    opened = Store.open(str(store))
    ask = {"train": lambda: opened.triples("train"), "entities": opened.entity_labels}[name]
    with pytest.raises(StoreError, match=rf"{name}\.parquet of store .* cannot be read"):
        ask()


def test_labels_that_are_no_utf8_are_refused(store: Path) -> None:
    labels = pa.array([b"\xff"] * 40, pa.binary()).view(pa.utf8())
    pq.write_table(pa.table({"id": pa.array(range(40), pa.int32()), "label": labels}), store / "entities.parquet")
    with pytest.raises(StoreError, match=r"entities\.parquet of store .* cannot be read \(.*UTF8"):
        Store.open(str(store)).entity_labels()


@pytest.mark.parametrize("column", ["entity", "class", "head", "tail"])
@pytest.mark.parametrize("value", [-2, 10**6])
def test_classes_that_are_none_of_the_store_are_refused(store: Path, column: str, value: int) -> None:
    name = "entity_classes.parquet" if column in ("entity", "class") else "relation_classes.parquet"
    table = pq.read_table(store / name).to_pydict()
    table[column][-1] = value
    pq.write_table(pa.table({key: pa.array(values, pa.int32()) for key, values in table.items()}), store / name)
    with pytest.raises(StoreError, match=rf"{name} of store .* holds id {value}"):
        Store.open(str(store)).classes()


@pytest.mark.parametrize("name", ["train.parquet", "entities.parquet", "manifest.json", "tokens"])
def test_links_may_not_lead_out_of_the_store(store: Path, tmp_path: Path, name: str) -> None:
    os.rename(store / name, tmp_path / name)
    (store / name).symlink_to(tmp_path / name)
    with pytest.raises(StoreError, match=rf"{name} is a link that leads out of its folder"):
        content_of(store)


def test_a_link_inside_the_store_and_one_to_it_are_followed(store: Path, tmp_path: Path) -> None:
    expected = content_of(store)
    os.rename(store / "train.parquet", store / "real.parquet")
    (store / "train.parquet").symlink_to("real.parquet")
    (tmp_path / "elsewhere").symlink_to(store)
    assert content_of(tmp_path / "elsewhere") == expected


def test_a_pipe_is_refused_without_waiting_for_a_writer(store: Path) -> None:
    (store / "train.parquet").unlink()
    os.mkfifo(store / "train.parquet")
    with pytest.raises(StoreError, match=r"train\.parquet cannot be read: it is not a plain file"):
        Store.open(str(store)).triples("train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 10**9}, "2 instead of 40 × 1000000000"),
        ({"width": 10**9}, r"instead of float16 \[5, 1000000000\]"),
        ({"covered": -1}, "covered"),
        ({"surprise": 1}, "surprise: Extra inputs"),
        ({"tokens": "2"}, "tokens: Input should be a valid integer"),
        ({"ids": {"sha256": "00", "bytes": 1, "rows": 10**9}}, "it covers 1,000,000,000 entities; the store has 40"),
        ({"codebook": {"sha256": "../../../x", "bytes": 1, "rows": 1}}, r"codebook\.sha256"),
        ({"format_version": 99}, "format version 99. Upgrade distkg"),
    ],
)
def test_a_description_of_tokens_is_held_against_its_files(store: Path, change: dict[str, Any], message: str) -> None:
    file = store / "tokens" / "text.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(StoreError, match=message):
        content_of(store)


@pytest.mark.parametrize("value", [-2, 5, 2**31 - 1])
def test_tokens_outside_of_the_codebook_are_refused(store: Path, value: int) -> None:
    file = store / "tokens" / "text.safetensors"
    content = bytearray(file.read_bytes())
    content[-8:-4] = value.to_bytes(4, "little", signed=True)
    file.write_bytes(content)
    with pytest.raises(StoreError, match="tokens that are not from -1 to 4"):
        content_of(store)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in children:
        yield (*path, key)
        yield from places(value, (*path, key))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([*LABELS, "../x", "/etc/passwd", 10**12]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["..", "rows", "a"]), inner, max_size=3)
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_manifest_of_any_values_is_refused_or_means_the_same(sound: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["manifest.json", "tokens/text.json"]))
    tree = json.loads((sound / name).read_text())
    for path in data.draw(st.lists(st.sampled_from(list(places(tree))), min_size=1, max_size=2)):
        node = changed = copy.deepcopy(tree)
        try:
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = data.draw(values)
        except (KeyError, IndexError, TypeError):
            continue
        tree = changed
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(shutil.copytree(sound, Path(folder) / "store"))
        (copied / name).write_text(json.dumps(tree))
        same_or_refused(copied, content_of(sound))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_files_with_other_bytes_are_refused_or_read(sound: Path, data: st.DataObject) -> None:
    """Bytes of a page may stand for other labels or ids, which checksums tell; the counts and bounds hold anyway."""
    files = [str(path.relative_to(sound)) for path in sorted(sound.rglob("*")) if path.is_file()]
    name = data.draw(st.sampled_from(files))
    content = bytearray((sound / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 4))
        content[at : at + length] = data.draw(st.binary(max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(shutil.copytree(sound, Path(folder) / "store"))
        (copied / name).write_bytes(content)
        try:
            triples, _, degrees, (entities, relations), labels, *_ = content_of(copied)
        except StoreError:
            return
        assert (len(triples[1]), len(degrees), len(labels)) == (40, entities, entities)
        for head, relation, tail in (triple for part in triples for triple in part):
            assert 0 <= min(head, relation, tail) <= max(head, tail) < entities
            assert relation < relations
