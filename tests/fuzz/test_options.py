"""Options and arguments of every command, found by walking the application: wrong, missing, doubled, out of range."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from distkg.cli import app
from tests.fuzz import harness
from tests.fuzz.harness import anything, few, hold, numbers, paths
from tests.fuzz.world import World

pytestmark = pytest.mark.timeout(14400)

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
KINDS = {
    registered.name or registered.callback.__name__.replace("_", "-"): get_type_hints(registered.callback)
    for registered in app.registered_commands
    if registered.callback is not None
}
FILES = ("store", "source", "to", "run", "folder", "queries", "output", "graph", "config", "space", "model")


def valid_arguments(command: str, world: World, out: Path) -> dict[str, list[str]]:
    """Option or argument → its values, for a call that succeeds; arguments by position are named ``0``, ``1``, …"""
    store, run, model = str(world.store), str(world.run), str(world.model)
    small = [f"data.store={store}", "model.dim=8"]
    return {
        "prepare": {"0": [str(world.source)], "--store": [str(out / "s")]},
        "generate": {
            "--store": [str(out / "s")], "--entities": ["40"], "--relations": ["3"], "--triples": ["400"],
            "--seed": ["1"],
        },
        "extend": {
            "0": [run], "1": [str(world.said / "new.tsv")], "--store": [str(out / "s")], "--to": [str(out / "g")],
        },
        "inductive-split": {
            "0": [str(world.folder / "generated")], "--to": [str(out / "i")], "--kind": ["entities"], "--seed": ["1"],
        },
        "negatives": {"0": [store], "--source": ["relational"], "--sample": ["20"], "--count": ["3"]},
        "relation-text": {"0": [str(world.copy("store", out / "store"))]},
        "tokens": {"0": [str(world.copy("store", out / "store"))], "--numeric": [str(world.said / "numeric.tsv")]},
        "train": {"0": [str(world.config)], "--run": [str(out / "r")], "--set": small},
        "tune": {"0": [str(world.config)], "--space": [str(world.space)], "--run": [str(out / "t")], "--set": small},
        "evaluate": {"0": [run]},
        "predict": {"0": [run], "--anchor": [world.head], "--relation": [world.relation]},
        "predict-relation": {"0": [model], "--store": [store], "--head": [world.head], "--tail": [world.tail]},
        "import-checkpoint": {"0": [str(world.checkpoint)], "--to": [str(out / "m")]},
        "export": {"0": [run], "--to": [str(out / "e")]},
        "plan": {"0": [str(world.config)], "--set": small},
        "report": {"0": [run], "--to": [str(out / "page.html")]},
        "presets": {},
        "config": {"0": [str(world.config)]},
        "warm": {"0": [str(world.config)]},
        "demo": {"--folder": [str(out / "demo")]},
    }[command]  # fmt: skip


def line_of(values: dict[str, list[str]]) -> list[str]:
    """The command line; positional arguments come last, so that options cannot be taken for them."""
    options = [part for name, each in values.items() if not name.isdigit() for value in each for part in (name, value)]
    return [*options, *(value for name, each in values.items() if name.isdigit() for value in each)]


def test_valid_calls_of_every_command_are_known() -> None:
    assert {command: valid_arguments(command, NoWorld(), Path("x")) for command in COMMANDS}.keys() == COMMANDS.keys()


class NoWorld(World):
    """Names without files."""

    def __init__(self) -> None:
        super().__init__(Path("w"))

    def copy(self, name: str, to: Path) -> Path:
        return to


@pytest.mark.parametrize("command", COMMANDS)
def test_the_valid_call_succeeds(command: str, world: World, tmp_path: Path) -> None:
    result = hold("valid", [command, *line_of(valid_arguments(command, world, tmp_path / "out"))])
    # The model of the world ranks entities, which is what predict-relation says then.
    assert result.exit_code == (2 if command == "predict-relation" else 0), result.output


@st.composite
def mutated_line(draw: st.DrawFn, command: str, values: dict[str, list[str]]) -> tuple[list[str], str]:
    """A valid call with one or two of its parameters changed, and what was changed."""
    changed = {name: list(each) for name, each in values.items()}
    flags, notes = [], []
    for _ in range(draw(st.integers(1, 2))):
        parameters = [p for p in COMMANDS[command].params if p.name != "help"]
        parameter = draw(st.sampled_from(parameters)) if parameters else None
        if parameter is None:
            return [*line_of(changed), draw(anything)], "an argument too many"
        name = _key(parameter, command)
        kind = draw(st.sampled_from(["value", "value", "value", "value", "drop", "twice", "unknown", "extra"]))
        notes.append(f"{kind} {name}")
        if kind == "drop":
            changed.pop(name, None)
        elif kind == "unknown":
            flags.append(draw(st.sampled_from([f"{name}x", "--nope", "-q", "--", "--store="])))
        elif kind == "extra":
            flags.append(draw(anything))
        elif getattr(parameter, "is_flag", False):
            flags.append(parameter.opts[0])
        else:
            value = draw(_values_of(parameter, command, values.get(name, [])))
            changed[name] = [*changed.get(name, []), value] if kind == "twice" else [value]
    return [*flags, *line_of(changed)], ", ".join(notes)


def _key(parameter: Any, command: str) -> str:
    if parameter.param_type_name == "argument":
        arguments = [p for p in COMMANDS[command].params if p.param_type_name == "argument"]
        return str(arguments.index(parameter))
    return next(name for name in parameter.opts if name.startswith("--"))


def _values_of(parameter: Any, command: str, valid: list[str]) -> st.SearchStrategy[str]:
    kinds = str(KINDS[command][parameter.name])
    if "int" in kinds or "float" in kinds:
        return st.one_of(numbers, numbers, anything)
    if parameter.name in FILES:
        return st.one_of(paths, paths, anything)
    near = [f"{value}{more}" for value in valid for more in ("x", "/", "/x", " ", "\n")]
    return st.one_of(anything, st.sampled_from(near)) if near else anything


@pytest.mark.parametrize("command", COMMANDS)
@few(3)
@given(data=st.data())
def test_any_mistake_in_a_command_line_is_a_message(
    command: str, data: st.DataObject, world: World, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    arguments, case = data.draw(mutated_line(command, valid_arguments(command, world, out)))
    if _takes_long(command, arguments):
        return
    hold("command lines", [command, *arguments], case)


def _takes_long(command: str, arguments: list[str]) -> bool:
    """Large graphs, and the kernels of all presets, which are valid to ask for: their time is not the question here."""
    if command == "warm":
        return all(argument.startswith("-") for argument in arguments)
    sizes = [int(value) for value in arguments if value.isascii() and value.isdigit() and len(value) < 20]
    return command == "generate" and any(20_000 < size < 10**9 for size in sizes)


def test_the_harness_sees_a_traceback_an_unlisted_code_and_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from distkg.reporting import catalogue

    monkeypatch.setattr(catalogue, "describe_presets", lambda: 1 // 0)
    with pytest.raises(AssertionError, match="exit 1"):
        hold("harness", ["presets"])
    monkeypatch.setattr(catalogue, "describe_presets", lambda: time.sleep(60))
    monkeypatch.setattr(harness, "watched", lambda case: original(case, 0.2))
    with pytest.raises(harness.HangError, match="presets"):
        hold("harness", ["presets"])


original = harness.watched
