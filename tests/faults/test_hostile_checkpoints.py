"""Checkpoints as a stranger's input: tensors come back as they were saved, or CheckpointError, whatever is there.

Two kinds of strangers: one who changes bytes and files, whom checksums find; and one who knows how checksums are made,
whose checkpoint must still agree with itself before anything is allocated for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bounded_memory import bounded_memory
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.sharding.checkpoint.checkpoint import CheckpointError, Checkpoints, State
from distkg.sharding.checkpoint.files import write_file, write_manifest
from distkg.sharding.checkpoint.manifest import CheckpointManifest, ShardFile, file_name
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards

ROWS, RANKS = 5, 2
FILES = [file_name(rank, RANKS) for rank in range(RANKS)]
NAMES = ["manifest.json", *FILES]

ENTITIES = torch.arange(15.0).reshape(ROWS, 3)
STEPS = torch.arange(float(ROWS)).reshape(ROWS, 1)
RELATIONS = torch.tensor([[0.5, -2.0]])


def state_of(fill: float | None = None) -> State:
    """The state on one rank, or one of the same shapes that is to be filled."""
    tensors = [
        tensor.clone() if fill is None else torch.full_like(tensor, fill) for tensor in (ENTITIES, STEPS, RELATIONS)
    ]
    return State({"entities": tensors[0], "optimizer.steps": tensors[1]}, {"model.relations": tensors[2]}, ROWS)


def write_checkpoint(folder: Path) -> None:
    """A checkpoint of two ranks, made in one process."""
    folder.mkdir(parents=True)
    state, files = state_of(), []
    for rank, name in enumerate(FILES):
        low, high = Shards(ROWS, RANKS).range(rank)
        tensors = {key: tensor[low:high].clone() for key, tensor in state.sharded.items()}
        files.append(write_file(folder / name, tensors | (state.replicated if rank == 0 else {}), low, high))
    draft = {"serial": 1, "created": "2026-01-01T00:00:00+00:00", "best": True, "world_size": RANKS, "rows": ROWS}
    progress = {"epoch": 3, "best_mrr": 0.25}
    write_manifest(folder, CheckpointManifest(**draft, progress=progress, tensors=state.entries(), files=files))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "step-1"
    write_checkpoint(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A folder of checkpoints that holds one sound one, step-1."""
    return shutil.copytree(sound, tmp_path / "checkpoints" / "step-1").parent


def read_in_every_way(folder: Path) -> list[str]:
    """Asks for everything; returns what was refused, in words. Whatever else is raised fails the test, and so do other
    tensors from a checkpoint that was found sound."""
    refused: list[str] = []
    with bounded_memory():
        checkpoints = Checkpoints(folder, Ranks.single(), keep=2, notice=refused.append)
        for work in (checkpoints.newest, checkpoints.best, lambda: load(checkpoints), lambda: read_rows(checkpoints)):
            found_damaged = bool(refused)
            try:
                work()
            except CheckpointError as error:
                refused.append(str(error))
            except AssertionError:
                assert found_damaged, "other tensors than were saved"
    return refused


def load(checkpoints: Checkpoints) -> None:
    state = state_of(fill=-7.0)
    assert checkpoints.load("step-1", state) == {"epoch": 3, "best_mrr": 0.25}
    assert torch.equal(state.sharded["entities"], ENTITIES)
    assert torch.equal(state.sharded["optimizer.steps"], STEPS)
    assert torch.equal(state.replicated["model.relations"], RELATIONS)


def read_rows(checkpoints: Checkpoints) -> None:
    """All rows that the manifest claims."""
    shapes = {name: entry.shape for name, entry in checkpoints.describe("step-1").tensors.items()}
    rows = (shapes.get("entities") or [ROWS])[0]
    assert torch.equal(checkpoints.read_rows("step-1", "entities", 0, rows), ENTITIES)


def test_a_sound_checkpoint_is_read_in_every_way(folder: Path) -> None:
    assert read_in_every_way(folder) == []


# ---- a stranger who changes bytes and files ----

places = st.floats(0, 1, exclude_max=True)
Edit = Callable[[bytes], bytes]


def set_byte(place: float, value: int) -> Edit:
    return lambda content: content[: (at := int(place * len(content)))] + bytes([value]) + content[at + 1 :]


def insert(place: float, more: bytes) -> Edit:
    return lambda content: content[: (at := int(place * len(content)))] + more + content[at:]


def cut(first: float, second: float) -> Edit:
    def edit(content: bytes) -> bytes:
        low, high = sorted((int(first * len(content)), int(second * len(content)) + 1))
        return content[:low] + content[high:]

    return edit


edits = st.one_of(
    st.builds(set_byte, places, st.integers(0, 255)),
    st.builds(insert, places, st.binary(min_size=1, max_size=9) | st.sampled_from([b"NaN", b"[" * 3000, b"\0" * 4096])),
    st.builds(cut, places, places),
    st.binary(max_size=40).map(lambda content: lambda _: content),
)
SHAPES_OF_A_PLACE = ["absent", "folder", "link", "dangling", "other file"]


def put_in_place(path: Path, what: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "link":
        outside = path.parent.parent.parent / f"outside-{path.name}"
        outside.write_bytes(content)
        path.symlink_to(outside)
    elif what == "dangling":
        path.symlink_to("nowhere")
    elif what == "other file":
        shutil.copy(path.parent / next(name for name in NAMES if name != path.name), path)


@settings(max_examples=150)
@given(changes=st.dictionaries(st.sampled_from(NAMES), st.lists(edits, min_size=1, max_size=3), min_size=1))
def test_changed_bytes_are_found(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, changes: dict[str, list[Edit]]
) -> None:
    folder = shutil.copytree(sound, tmp_path_factory.mktemp("changed") / "step-1")
    changed = False
    for name, edits_of_file in changes.items():
        before = content = (folder / name).read_bytes()
        for edit in edits_of_file:
            content = edit(content)
        (folder / name).write_bytes(content)
        changed |= content != before and not same_json(name, content, before)
    refused = read_in_every_way(folder.parent)
    assert bool(refused) == changed
    shutil.rmtree(folder.parent)


def same_json(name: str, content: bytes, before: bytes) -> bool:
    """Whether a manifest still says the same, such as with a space more."""
    if name != "manifest.json":
        return False
    try:
        return list(json.loads(content).items()) == list(json.loads(before).items())
    except (ValueError, RecursionError, AttributeError):
        return False


@pytest.mark.parametrize("what", SHAPES_OF_A_PLACE)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_the_file_itself_is_refused(folder: Path, name: str, what: str) -> None:
    put_in_place(folder / "step-1" / name, what)
    refused = read_in_every_way(folder)
    assert refused
    assert all(str(folder) in text for text in refused)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_in_place_of_a_file_is_never_opened(folder: Path, name: str) -> None:
    (folder / "step-1" / name).unlink()
    os.mkfifo(folder / "step-1" / name)
    assert read_in_every_way(folder)


def test_a_checkpoint_behind_a_link_is_refused_and_left_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "step-1").rename(tmp_path / "elsewhere")
    (folder / "step-1").symlink_to(tmp_path / "elsewhere")
    checkpoints = Checkpoints(folder, Ranks.single(), keep=1)
    with pytest.raises(CheckpointError, match="step-1 is a link; replace it by the folder itself"):
        checkpoints.newest()
    checkpoints.save("step-2", state_of(), {"epoch": 2})
    checkpoints.wait()
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == sorted(NAMES)


# ---- a stranger who knows how checksums are made ----


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tree = json.loads((folder / "manifest.json").read_bytes())
    del tree["sha256"]
    changed = change(tree)
    tree = tree if changed is None else changed
    text = json.dumps(tree, sort_keys=True)
    if isinstance(tree, dict):
        tree = tree | {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(tree))


def set_at(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: Any) -> None:
        for key in path[:-1]:
            tree = tree[key]
        tree[path[-1]] = value

    return change


MILLION_MILLIONS = 10**12
FORGERIES = [
    (set_at("rows", value=MILLION_MILLIONS), "do not hold rows 0 to 1000000000000"),
    (set_at("rows", value=-1), "rows: "),
    (set_at("rows", value=2**70), "rows: "),
    (set_at("rows", value=5.0), "rows: "),
    (set_at("rows", value=True), "rows: "),
    (set_at("files", 1, "high", value=MILLION_MILLIONS), "do not hold rows 0 to 5"),
    (set_at("files", 1, "low", value=2), "do not hold rows 0 to 5"),
    (set_at("files", 0, "low", value=-3), "files.0.low: "),
    (set_at("files", 0, "bytes", value=10), "and it has 10"),
    (set_at("files", 0, "bytes", value=-10), "files.0.bytes: "),
    (set_at("files", 0, "sha256", value="x"), "files.0.sha256: "),
    (set_at("files", 0, "name", value="../step-1/" + FILES[0]), "files.0.name: "),
    (set_at("files", 0, "name", value="/etc/passwd"), "files.0.name: "),
    (set_at("files", 0, "name", value=FILES[1]), "its files are not rank-00000-of-00002"),
    (set_at("files", 0, "name", value="rank-٠٠٠٠٠-of-00002.safetensors"), "files.0.name: "),
    (set_at("files", 0, "owner", value="me"), "files.0.owner: "),
    (set_at("files", value=[]), "do not hold rows"),
    (set_at("world_size", value=3), "do not hold rows"),
    (set_at("world_size", value=0), "world_size: "),
    (set_at("serial", value=-1), "serial: "),
    (set_at("serial", value="1"), "serial: "),
    (set_at("best", value=1), "best: "),
    (set_at("created", value="x" * 100), "created: "),
    (set_at("format", value="1"), "format: "),
    (set_at("progress", value=[]), "progress: "),
    (set_at("owner", value="me"), "owner: "),
    (set_at("tensors", "entities", "dtype", value="float8_e4m3fn"), "tensors.entities.dtype: "),
    (set_at("tensors", "entities", "dtype", value="load"), "tensors.entities.dtype: "),
    (set_at("tensors", "entities", "dtype", value="Tensor"), "tensors.entities.dtype: "),
    (set_at("tensors", "entities", "dtype", value="bfloat16"), r"entities as float32 \[3, 3\], .* bfloat16 \[3, 3\]"),
    (set_at("tensors", "entities", "shape", value=[5, 10**9]), "take 12000000"),
    (set_at("tensors", "entities", "shape", value=[MILLION_MILLIONS, 3]), "the checkpoint has 5 rows"),
    (set_at("tensors", "entities", "shape", value=[5, -3]), "tensors.entities.shape.1: "),
    (set_at("tensors", "entities", "shape", value=[5, 2]), r"entities of shape \[3, 3\], its manifest says \[3, 2\]"),
    (set_at("tensors", "entities", "shape", value=[5] + [1] * 64), "tensors.entities.shape: "),
    (set_at("tensors", "entities", "shape", value=[]), "the checkpoint has 5 rows"),
    (set_at("tensors", "entities", "sharded", value=False), r"of shape \[3, 3\], its manifest says \[5, 3\]"),
    (set_at("tensors", "model.relations", "shape", value=[10**9, 2]), "take 800000"),
    (set_at("tensors", "more", value={"dtype": "int8", "shape": [5, 0], "sharded": True}), "lacks the tensor more"),
    (set_at("tensors", "\u202e", value={"dtype": "int8", "shape": [], "sharded": False}), "printable"),
    (set_at("tensors", value={}), "holds an unexpected tensor 'entities'"),
    (lambda tree: [tree], "not the manifest"),
    (lambda tree: "manifest", "not the manifest"),
    (lambda tree: tree.pop("tensors") and None, "tensors: "),
]


@pytest.mark.parametrize(("change", "why"), FORGERIES)
def test_a_forged_manifest_that_cannot_be_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any], why: str
) -> None:
    rewrite_manifest(folder / "step-1", change)
    with bounded_memory(), pytest.raises(CheckpointError, match=why) as caught:
        Checkpoints(folder, Ranks.single(), keep=2).newest()
    assert "step-1: " in str(caught.value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 12)
    | st.sampled_from([2**63 - 1, 2**64, 10**12, 1e308])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["float32", "int64", "../x", "/etc/passwd", *FILES]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def paths_of(tree: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path for key, value in items for path in [(*before, key), *paths_of(value, (*before, key))]]


@settings(max_examples=250)
@given(data=st.data(), count=st.integers(1, 3))
def test_any_forged_manifest_is_refused_or_harmless(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int
) -> None:
    folder = shutil.copytree(sound, tmp_path_factory.mktemp("forged") / "step-1")

    def change(tree: dict[str, Any]) -> None:
        for _ in range(count):
            path = data.draw(st.sampled_from(paths_of(tree)))
            parent: Any = tree
            for key in path[:-1]:
                parent = parent[key]
            if data.draw(st.integers(0, 4)) == 0:
                del parent[path[-1]]
            else:
                parent[path[-1]] = data.draw(json_values)

    rewrite_manifest(folder, change)
    with contextlib.suppress(AssertionError):  # the forger may say another progress: it is theirs
        read_in_every_way(folder.parent)
    shutil.rmtree(folder.parent)


def rewrite_file(folder: Path, rank: int, content: bytes) -> None:
    """Another file of a rank, with a manifest that vouches for it."""
    (folder / FILES[rank]).write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite_manifest(folder, lambda tree: tree["files"][rank].update(entry))


@settings(max_examples=250)
@given(data=st.data())
def test_any_forged_header_is_refused_or_harmless(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Headers that are changed as JSON, or byte by byte, in files whose checksums are right."""
    folder = shutil.copytree(sound, tmp_path_factory.mktemp("header") / "step-1")
    rank = data.draw(st.integers(0, 1))
    content = (folder / FILES[rank]).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, values = content[8 : 8 + length], content[8 + length :]
    if data.draw(st.booleans()):
        tree = json.loads(header)
        path = data.draw(st.sampled_from(paths_of(tree)))
        parent: Any = tree
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = data.draw(json_values)
        header = json.dumps(tree).encode()
    else:
        header = data.draw(edits)(header)
    claimed = data.draw(st.just(len(header)) | st.sampled_from([0, 2**20, 2**40, 2**64 - 1]))
    rewrite_file(folder, rank, claimed.to_bytes(8, "little") + header + values)
    with contextlib.suppress(AssertionError):  # two tensors of one size may have changed places
        read_in_every_way(folder.parent)
    shutil.rmtree(folder.parent)


def test_a_forged_file_with_nan_is_refused(folder: Path) -> None:
    """As a run of an earlier version may have left it."""
    content = (folder / "step-1" / FILES[1]).read_bytes()
    rewrite_file(folder / "step-1", 1, content[:-4] + b"\0\0\xc0\x7f")
    with pytest.raises(CheckpointError, match=f"{FILES[1]} holds NaN or infinity in (entities|optimizer.steps)"):
        Checkpoints(folder, Ranks.single(), keep=2).newest()


def test_entries_of_files_say_what_they_are() -> None:
    """The strategies above are about fields that exist."""
    assert set(ShardFile.model_fields) == {"name", "low", "high", "bytes", "sha256"}
    assert set(CheckpointManifest.model_fields) >= {
        "rows",
        "serial",
        "world_size",
        "best",
        "progress",
        "tensors",
        "files",
    }
