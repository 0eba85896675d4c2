"""Files of triples and what lies beside them: every line is a fact, a reject or a counted warning, or a message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distkg.data.store.graph_store import Store
from tests.fuzz.harness import few, hold, lines_of, mutated_bytes, mutated_tree
from tests.fuzz.world import SAID, SOURCE, World

pytestmark = pytest.mark.timeout(14400)


def fresh_store(world: World, tmp_path: Path) -> Path:
    """A copy of the store, which commands write into."""
    return world.copy("store", tmp_path / "store")


@pytest.mark.parametrize("name", SOURCE)
@few(4)
@given(data=st.data(), skip=st.booleans())
def test_a_damaged_source_is_named_and_no_line_is_lost(
    name: str, data: st.DataObject, skip: bool, world: World, tmp_path: Path
) -> None:
    source, store = world.copy("source", tmp_path / "source"), tmp_path / "made"
    shutil.rmtree(store, ignore_errors=True)
    content = data.draw(mutated_bytes(SOURCE[name].encode()))
    (source / name).write_bytes(content)
    line = ["prepare", str(source), "--store", str(store), *(["--on-error", "skip"] if skip else [])]
    result = hold("source files", line, f"{name}: {content!r}", [Path(name).name])
    if result.exit_code == 0 and name.endswith(("train.tsv", "valid.tsv", "test.tsv")):
        _hold_lines(store, name, content)


def _hold_lines(store: Path, name: str, content: bytes) -> None:
    """As many lines as facts, duplicates, rejects, blank and header lines together."""
    manifest = Store.open(str(store)).manifest
    split, warned = name.removesuffix(".tsv"), manifest.warnings
    counted = manifest.triples[split] + warned.get(f"{split}_duplicates", 0)
    counted += sum(warned.get(kind, 0) for kind in ("rejected_lines", "blank_lines", "header_lines", "comment_lines"))
    expected = len(lines_of(content))
    records = max(0, expected - counted)  # lone carriage returns end lines in files that have nothing else
    assert records == 0 or b"\r" in content or b'"' in content or b"\x00" in content, (
        counted,
        expected,
        warned,
        content,
    )


@pytest.mark.parametrize("name", [name for name in SOURCE if name.endswith(".json")])
@few(4)
@given(data=st.data())
def test_metadata_of_any_form_is_named(name: str, data: st.DataObject, world: World, tmp_path: Path) -> None:
    source, store = world.copy("source", tmp_path / "source"), tmp_path / "made"
    shutil.rmtree(store, ignore_errors=True)
    tree = data.draw(mutated_tree(json.loads(SOURCE[name])))
    (source / name).write_text(json.dumps(tree), "utf-8")
    hold("source files", ["prepare", str(source), "--store", str(store)], repr(tree), [Path(name).name])


TOKENS = {
    "texts.tsv": ["--text", "FILE"],
    "numeric.tsv": ["--numeric", "FILE"],
    "tokens.json": ["--mygo", "FILE", "--codebook", "CODEBOOK", "--name", "image"],
    "ids.tsv": ["--numeric", "NUMERIC", "--ids", "FILE"],
}


def tokens_line(store: Path, name: str, file: Path, world: World) -> list[str]:
    places = {"FILE": file, "CODEBOOK": world.said / "codebook.npy", "NUMERIC": world.said / "numeric.tsv"}
    return ["tokens", str(store), *(str(places.get(part, part)) for part in TOKENS[name]), "--json"]


@pytest.mark.parametrize("name", TOKENS)
@few(4)
@given(data=st.data())
def test_a_damaged_file_of_what_is_said_is_named(name: str, data: st.DataObject, world: World, tmp_path: Path) -> None:
    store, file = fresh_store(world, tmp_path), tmp_path / f"damaged_{name}"
    content = data.draw(mutated_bytes(SAID[name].encode()))
    file.write_bytes(content)
    names = [file.name, "--ids"] if name == "ids.tsv" else [file.name]
    hold("side files", tokens_line(store, name, file, world), repr(content), names)


@few(8)
@given(data=st.data())
def test_token_lists_of_any_form_are_named(data: st.DataObject, world: World, tmp_path: Path) -> None:
    store, file = fresh_store(world, tmp_path), tmp_path / "wrong_tokens.json"
    tree = data.draw(mutated_tree(json.loads(SAID["tokens.json"])))
    file.write_text(json.dumps(tree), "utf-8")
    hold("side files", tokens_line(store, "tokens.json", file, world), repr(tree), [file.name])


@pytest.mark.parametrize("name", ["codebook.npy", "codebook.safetensors", "codebook.pth"])
@few(4)
@given(data=st.data())
def test_a_damaged_codebook_is_named(name: str, data: st.DataObject, world: World, tmp_path: Path) -> None:
    store, file = fresh_store(world, tmp_path), tmp_path / f"damaged_{name}"
    content = data.draw(mutated_bytes((world.said / name).read_bytes()))
    file.write_bytes(content)
    line = ["tokens", str(store), "--mygo", str(world.said / "tokens.json"), "--codebook", str(file), "--name", "image"]
    hold("codebooks", line, repr(content), [file.name, "codebook"])


@few(4)
@given(data=st.data())
def test_damaged_descriptions_of_relations_are_named(data: st.DataObject, world: World, tmp_path: Path) -> None:
    store, file = fresh_store(world, tmp_path), tmp_path / "damaged_descriptions.tsv"
    content = data.draw(mutated_bytes(SAID["descriptions.tsv"].encode()))
    file.write_bytes(content)
    names = [file.name, "has no description"]
    hold("side files", ["relation-text", str(store), "--descriptions", str(file)], repr(content), names)


@few(4)
@given(data=st.data(), name=st.sampled_from(["triples.tsv", "numeric.tsv"]))
def test_a_damaged_graph_to_reason_from_is_named(data: st.DataObject, name: str, world: World, tmp_path: Path) -> None:
    graph = tmp_path / "graph"
    graph.mkdir(exist_ok=True)
    files = {"triples.tsv": SOURCE["train.tsv"].encode(), "numeric.tsv": SAID["numeric.tsv"].encode()}
    files[name] = data.draw(mutated_bytes(files[name]))
    for each, content in files.items():
        (graph / each).write_bytes(content)
    line = ["predict", str(world.model), "--graph", str(graph), "--anchor", "e1", "--relation", "r1"]
    hold("side files", line, repr(files[name]), [name, "e1", "r1"])


def test_a_bomb_is_refused_before_it_unfolds(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip
    import zipfile

    monkeypatch.setattr("distkg.data.tokens.entity_values.LARGEST_JSON", 1 << 20)
    store, content = fresh_store(world, tmp_path), b'{"e1": [' + b"0, " * (1 << 20) + b"0]}"
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(content))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("tokens.json", content)
    for name in ("bomb.json.gz", "bomb.zip"):
        result = hold("side files", tokens_line(store, "tokens.json", tmp_path / name, world), names=[name])
        assert "larger than 1 MiB when decompressed" in result.stderr
