"""CONFIG of a command may be the address of a file in an object store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distkg.cli import app
from distkg.data.storage import location
from distkg.data.storage.objects import objects_at


def run_cli(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output.replace("\n", " ")


def test_a_configuration_in_a_store_is_read_once(bucket: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    objects_at(bucket("settings")).write("my.yaml", b"model: {name: transe, dim: 24}\n")
    reads: list[str] = []
    read = location.Location.read_bytes

    def counted(self: location.Location, most: int | None = None) -> bytes:
        reads.append(self.path)
        return read(self, most)

    monkeypatch.setattr(location.Location, "read_bytes", counted)
    code, output = run_cli("config", bucket("settings/my.yaml"), "--set", "model.dim=12")
    assert code == 0, output
    assert "name: transe" in output
    assert "dim: 12" in output
    assert [path.partition("/")[2] for path in reads] == ["settings/my.yaml"]


@pytest.mark.parametrize(
    "command",
    [("plan",), ("train", "--run", "r"), ("tune", "--run", "s", "--space", "preset:embedding")],
    ids=lambda command: command[0],
)
def test_a_configuration_that_is_not_there(
    command: tuple[str, ...], bucket: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = bucket("settings/none.yaml")
    code, output = run_cli(command[0], address, *command[1:])
    assert code == 2
    place = address.partition("?")[0]
    assert f"error: there is no file at {place}. Correct the address, or write the file there first" in output
    assert list(tmp_path.iterdir()) == []


def test_mistakes_name_the_address_without_its_options(bucket: Callable[[str], str]) -> None:
    objects_at(bucket("settings")).write("my.yaml", b"model: {dimm: 24}\n")
    objects_at(bucket("settings")).write("large.yaml", b"#" * (1 << 20))
    code, output = run_cli("plan", bucket("settings/my.yaml"))
    assert code == 2
    assert "settings/my.yaml: model.dimm: is not a key of model" in output
    assert "endpoint_override" not in output
    code, output = run_cli("plan", bucket("settings/large.yaml"))
    assert code == 2
    assert "settings/large.yaml is larger than 256 KiB, the limit of YAML files" in output
