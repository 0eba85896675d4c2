"""Folders that other commands wrote, each file missing, damaged or of another kind: runs, stores, searches, models."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.harness import few, hold, mutated_bytes, mutated_tree
from tests.fuzz.world import World

pytestmark = pytest.mark.timeout(14400)

PARTS = {
    "run": [
        ["evaluate", "PART"],
        ["predict", "PART", "--anchor", "e1", "--relation", "r1"],
        ["export", "PART", "--to", "OUT"],
        ["report", "PART"],
        ["report", "PART", "RUN"],
        ["extend", "PART", "NEW", "--store", "OUT", "--to", "OUT-run"],
        ["train", "CONFIG", "--run", "PART", "--resume", "--set", "model.dim=8"],
        ["negatives", "STORE", "--source", "nearest", "--run", "PART", "--sample", "10"],
    ],
    "store": [
        ["plan", "CONFIG", "--set", "data.store=PART"],
        ["plan", "preset:ultra", "--set", "data.graphs=[PART]", "--set", "model.options={width: 4, hidden: 4}"],
        ["negatives", "PART", "--source", "relational", "--sample", "10"],
        ["negatives", "PART", "--source", "typed", "--sample", "10"],
        ["evaluate", "MODEL", "--store", "PART"],
        ["predict", "MODEL", "--store", "PART", "--anchor", "e1", "--relation", "r1"],
        ["inductive-split", "PART", "--to", "OUT", "--kind", "entities", "--seed", "1"],
        ["tokens", "PART", "--numeric", "NUMERIC"],
        ["train", "CONFIG", "--run", "OUT", "--set", "data.store=PART"],
    ],
    "search": [
        ["report", "PART"],
        ["tune", "CONFIG", "--space", "SPACE", "--run", "PART", "--resume", "--trials", "2"],
    ],
    "model": [
        ["predict", "PART", "--store", "STORE", "--anchor", "e1", "--relation", "r1"],
        ["evaluate", "PART", "--store", "STORE"],
        ["plan", "preset:ultra", "--set", "data.graphs=[STORE]", "--set", "model.start=PART"],
    ],
}  # fmt: skip
CASES = [(part, command) for part, commands in PARTS.items() for command in commands]


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("part", "command"), CASES, ids=lambda value: value if isinstance(value, str) else value[0])
@few(3)
@given(data=st.data())
def test_a_damaged_folder_is_a_message(
    part: str, command: list[str], data: st.DataObject, world: World, tmp_path: Path
) -> None:
    folder = world.copy(part, tmp_path / f"damaged_{part}")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    name = data.draw(st.sampled_from(files_of(folder)))
    case = f"{name}: {damage(folder / name, data)}"
    places = {
        "PART": folder, "OUT": tmp_path / "out", "RUN": world.run, "STORE": world.store, "MODEL": world.model,
        "CONFIG": world.config, "SPACE": world.space, "NUMERIC": world.said / "numeric.tsv",
        "NEW": world.said / "new.tsv",
    }  # fmt: skip
    line = [_filled(argument, places) for argument in command]
    hold(f"{part} folders", line, case)


def _filled(argument: str, places: dict[str, Path]) -> str:
    for name, place in places.items():
        argument = argument.replace(name, str(place))
    return argument


def damage(file: Path, data: st.DataObject) -> str:
    """Change a file in some way and say how."""
    kind = data.draw(
        st.sampled_from(["bytes", "bytes", "bytes", "tree", "tree", "missing", "folder", "empty", "loop", "pipe"])
    )
    content = file.read_bytes()
    if kind == "tree" and file.suffix in (".json", ".yaml", ".jsonl"):
        changed = _other_tree(file, content, data)
    elif kind in ("bytes", "tree"):
        changed = data.draw(mutated_bytes(content))
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()
        elif kind == "loop":
            file.symlink_to(file.name)
        elif kind == "pipe":
            os.mkfifo(file)
        elif kind == "empty":
            file.touch()
        return kind
    file.write_bytes(changed)
    return f"{kind} {changed[:2000]!r}"


def _other_tree(file: Path, content: bytes, data: st.DataObject) -> bytes:
    text = content.decode()
    if file.suffix == ".yaml":
        return yaml.safe_dump(data.draw(mutated_tree(yaml.safe_load(text)))).encode()
    if file.suffix == ".json":
        return json.dumps(data.draw(mutated_tree(json.loads(text)))).encode()
    lines = data.draw(mutated_tree([json.loads(line) for line in text.splitlines()]))
    return "".join(json.dumps(line) + "\n" for line in (lines if isinstance(lines, list) else [lines])).encode()


@few(12)
@given(data=st.data())
def test_a_damaged_checkpoint_is_a_message(data: st.DataObject, world: World, tmp_path: Path) -> None:
    file = tmp_path / "damaged.pth"
    content = data.draw(mutated_bytes(world.checkpoint.read_bytes()))
    file.write_bytes(content)
    shutil.rmtree(tmp_path / "m", ignore_errors=True)
    line = ["import-checkpoint", str(file), "--to", str(tmp_path / "m")]
    result = hold("published checkpoints", line, repr(content[:300]), ["damaged.pth"])
    assert (tmp_path / "m" / "model.json").exists() == (result.exit_code == 0)


@few(8)
@given(data=st.data(), format=st.sampled_from(["ultra", "trix", "trix_relations", "motif", "semma"]))
def test_other_things_than_checkpoints_are_a_message(
    data: st.DataObject, format: str, world: World, tmp_path: Path
) -> None:
    import pickle

    import torch

    file = tmp_path / "other.pth"
    things = [
        None,
        [],
        {},
        {"model": {}},
        {"model": {"x": 1}},
        {1: torch.zeros(1)},
        torch.zeros(2),
        {"model": [1]},
        "x",
        10**40,
    ]
    thing = data.draw(st.sampled_from(things))
    if data.draw(st.booleans()):
        torch.save(thing, file)
    else:
        file.write_bytes(pickle.dumps(thing))
    line = ["import-checkpoint", str(file), "--to", str(tmp_path / "m"), "--format", format]
    result = hold("published checkpoints", line, repr(thing), ["other.pth"])
    assert result.exit_code == 2
