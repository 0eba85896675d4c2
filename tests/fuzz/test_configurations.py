"""Configuration files, search spaces, overrides and options of registered classes: as bytes, as trees, key by key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from distkg.config import RunConfig, Section, load_config, parse_config
from distkg.documents import parse_yaml
from distkg.embedding.scorers import SCORERS
from distkg.foundation.models import MODELS
from distkg.negatives import SOURCES
from tests.fuzz.harness import JSON_VALUES, anything, few, hold, mutated_bytes, mutated_tree, numbers
from tests.fuzz.world import World

pytestmark = pytest.mark.timeout(14400)

COMMANDS = {
    "config": ["config", "FILE"],
    "plan": ["plan", "FILE"],
    "train": ["train", "FILE", "--run", "run"],
    "tune": ["tune", "FILE", "--space", "SPACE", "--run", "search"],
}


def line_of(command: str, file: Path, space: Path) -> list[str]:
    """The command, with folders of its own made anew."""
    for folder in ("run", "search"):
        shutil.rmtree(folder, ignore_errors=True)
    return [{"FILE": str(file), "SPACE": str(space)}.get(part, part) for part in COMMANDS[command]]


@pytest.mark.parametrize("command", COMMANDS)
@few(5)
@given(data=st.data())
def test_a_damaged_file_is_named(command: str, data: st.DataObject, world: World, tmp_path: Path) -> None:
    file = tmp_path / "damaged.yaml"
    content = data.draw(mutated_bytes(world.config.read_bytes()))
    file.write_bytes(content)
    result = hold("configuration files", line_of(command, file, world.space), repr(content), ["damaged.yaml", *KEYS])
    if command == "config" and result.exit_code == 0:
        assert parse_config(parse_yaml(result.stdout, "printed"), "printed") == load_config(str(file))


@pytest.mark.parametrize("command", ["config", "plan"])
@few(5)
@given(data=st.data())
def test_a_wrong_value_is_named(command: str, data: st.DataObject, world: World, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    tree = data.draw(mutated_tree(parse_yaml(world.config.read_text(), "valid")))
    file.write_text(yaml.safe_dump(tree, allow_unicode=True))
    hold("configuration values", line_of(command, file, world.space), repr(tree), ["wrong.yaml", *KEYS])


@few(5)
@given(data=st.data())
def test_a_damaged_space_is_named(data: st.DataObject, world: World, tmp_path: Path) -> None:
    file = tmp_path / "damaged_space.yaml"
    content = data.draw(mutated_bytes(world.space.read_bytes()))
    file.write_bytes(content)
    names = ["damaged_space.yaml", "space"]
    hold("search spaces", line_of("tune", world.config, file), repr(content), names)


@few(5)
@given(data=st.data())
def test_a_wrong_distribution_is_named(data: st.DataObject, world: World, tmp_path: Path) -> None:
    file = tmp_path / "wrong_space.yaml"
    tree = {"model.dim": {"choice": [8, 16]}, "optimizer.learning_rate": {"log_uniform": [0.001, 0.1]}}
    file.write_text(
        json.dumps(data.draw(mutated_tree(tree)), ensure_ascii=False).replace("NaN", ".nan"), "utf-8", "replace"
    )
    hold("search spaces", line_of("tune", world.config, file), file.read_text(), ["wrong_space.yaml", "space"])


def keys_of(section: type[BaseModel], above: str = "") -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        inside = isinstance(inner, type) and issubclass(inner, Section)
        found += keys_of(inner, f"{above}{name}.") if inside else [f"{above}{name}"]
    return found


# A changed address of a store, or of the folders that the test names, is told as such.
KEYS = [*RunConfig.model_fields, *keys_of(RunConfig), "no store", "folder", "there is no"]

values = st.one_of(numbers, anything, st.sampled_from(JSON_VALUES).map(lambda value: json.dumps(value)))


@pytest.mark.parametrize("command", ["config", "plan"])
@few(10)
@given(key=st.sampled_from(keys_of(RunConfig)), value=values, twice=st.booleans())
def test_a_wrong_override_is_named(command: str, key: str, value: str, twice: bool, world: World) -> None:
    lines = [*line_of(command, world.config, world.space), "--set", f"{key}={value}"]
    lines += ["--set", f"{key}={value}"] if twice else []
    # A key may contradict another one, which the message then names; an argument may be no text at all.
    hold("overrides", lines, names=[key, key.split(".")[-1], "argument", *KEYS])


@few(10)
@given(override=st.one_of(anything, st.tuples(anything, anything).map("=".join)))
def test_an_override_of_any_form_is_a_message(override: str, world: World) -> None:
    hold("overrides", ["config", str(world.config), f"--set={override}"], names=["override", "argument", "--set"])


def owners() -> list[tuple[str, str, type[BaseModel]]]:
    return [
        *(("scorer", name, SCORERS[name].Options) for name in SCORERS),
        *(("source", name, SOURCES[name].Options) for name in SOURCES),
        *(("model", name, MODELS[name].Options) for name in MODELS),
    ]


def plan_with(kind: str, name: str, options: Any, world: World, more: list[str]) -> list[str]:
    changes = {
        "scorer": [f"model.name={name}", f"model.options={json.dumps(options)}"],
        "source": [
            "objective.name=margin", f"negatives.source={name}", f"negatives.options={json.dumps(options)}"
        ],
        "model": [f"model.name={name}", f"model.options={json.dumps(options)}", f"data.graphs=[{world.store}]"],
    }[kind]  # fmt: skip
    base = "preset:ultra" if kind == "model" else str(world.config)
    # The mixture of the world's configuration is not that of other sources.
    cleared = ["negatives.source=uniform", "negatives.options={}"] if kind != "model" else []
    return ["plan", base, *(part for change in (*cleared, *more, *changes) for part in ("--set", change))]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, name, _ in owners()])
def test_an_unknown_option_is_named_before_a_run_starts(kind: str, name: str, world: World) -> None:
    result = hold("options of classes", plan_with(kind, name, {"nope": 1}, world, []), names=["options.nope"])
    assert result.exit_code == 2


@few(25)
@given(
    owned=st.sampled_from([(kind, name, key) for kind, name, type_ in owners() for key in type_.model_fields]),
    value=st.sampled_from([*JSON_VALUES[:6], *JSON_VALUES[8:-2], "nan", "x" * 100]),
)
def test_a_wrong_option_is_named_before_a_run_starts(owned: tuple[str, str, str], value: Any, world: World) -> None:
    kind, name, option = owned
    line = plan_with(kind, name, {option: value}, world, [])
    hold("options of classes", line, names=[option, "options", "dim", "GiB"])


@few(8)
@given(options=st.one_of(anything, st.sampled_from(JSON_VALUES).map(json.dumps)), source=st.sampled_from([*SOURCES]))
def test_options_on_the_command_line_are_named(options: str, source: str, world: World) -> None:
    line = ["negatives", str(world.store), "--source", source, "--sample", "5", f"--options={options}"]
    hold("options of classes", line, names=["--options", "options", "argument", "--run", "model", "classes"])
