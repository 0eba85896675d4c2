"""Every option and argument of a command that takes a path refuses the address of an object store, or reads it."""

import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.models import ArgumentInfo, ParameterInfo
from typer.testing import CliRunner

from distkg.cli import app
from distkg.cli.app import file_path, folder_path

PATHS = 10
"""Parameters of the commands that take a path, at least: the walk must not come to miss them."""


@dataclass(frozen=True)
class Parameter:
    command: str
    name: str
    annotation: Any
    information: ParameterInfo
    default: Any

    @property
    def takes_a_path(self) -> bool:
        parts = (self.annotation, *typing.get_args(self.annotation))
        return any(inspect.isclass(part) and issubclass(part, Path) for part in parts)

    @property
    def option(self) -> str:
        named = [text for text in self.information.param_decls or () if text.startswith("--")]
        return named[0] if named else f"--{self.name.replace('_', '-')}"

    def __str__(self) -> str:
        return f"{self.command} {self.name}"


def parameters() -> Iterator[Parameter]:
    for registered in app.registered_commands:
        function = typing.cast(Callable[..., Any], registered.callback)
        command = registered.name or function.__name__
        for name, hint in typing.get_type_hints(function, include_extras=True).items():
            if typing.get_origin(hint) is typing.Annotated:
                annotation, information = typing.get_args(hint)[:2]
                default = inspect.signature(function).parameters[name].default
                yield Parameter(command, name, annotation, information, default)


TAKE_A_PATH = [parameter for parameter in parameters() if parameter.takes_a_path]


def test_no_command_has_a_path_that_is_not_checked() -> None:
    assert len(TAKE_A_PATH) >= PATHS
    unchecked = [str(each) for each in TAKE_A_PATH if each.information.parser not in (file_path, folder_path)]
    assert unchecked == []


@pytest.mark.parametrize("refused", TAKE_A_PATH, ids=str)
def test_an_address_is_refused_before_anything_is_written(
    refused: Parameter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [refused.command, *arguments_with(refused, "s3://bucket/runs/x")])
    assert result.exit_code == 2, result.output
    assert "'s3://bucket/runs/x' must be a" in result.output
    assert "not an object store" in result.output
    assert list(tmp_path.iterdir()) == []


def arguments_with(refused: Parameter, value: str) -> Iterator[str]:
    """What the command needs, with the value at one place."""
    for parameter in parameters():
        if parameter.command != refused.command:
            continue
        needed = parameter.default is inspect.Parameter.empty
        if parameter.name != refused.name and not needed:
            continue
        given = value if parameter.name == refused.name else {int: "1"}.get(parameter.annotation, "entities")
        if isinstance(parameter.information, ArgumentInfo):
            yield given
        else:
            yield from (parameter.option, given)
