"""Where output goes: pipes without a reader, full disks, closed descriptors, other encodings, narrow terminals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distkg.config import load_config
from distkg.documents import parse_yaml

DISTKG = f"{sys.executable} -m distkg"


def shell(
    command: str, *, stdout: int = subprocess.PIPE, encoding: str = "utf-8", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, with distkg from this tree."""
    root = str(Path(__file__).resolve().parents[2])
    variables = {**os.environ, "PYTHONPATH": root, **environment}
    return subprocess.run(
        ["bash", "-c", command], stdout=stdout, stderr=subprocess.PIPE, env=variables, timeout=300, encoding=encoding
    )


def test_a_reader_that_goes_ends_the_command_quietly() -> None:
    for command in ("config preset:demo", "presets", "--help"):
        reader, writer = os.pipe()
        os.close(reader)
        result = shell(f"{DISTKG} {command}", stdout=writer)
        os.close(writer)
        assert (result.returncode, result.stderr) == (141, ""), command


@pytest.mark.parametrize("command", ["config preset:demo", "presets", "--help"])
def test_outputs_that_lead_nowhere(command: str) -> None:
    closed = shell(f"{DISTKG} {command} >&-")
    assert (closed.returncode, closed.stderr) == (0, "")
    full = shell(f"{DISTKG} {command} > /dev/full")
    assert "Traceback" not in full.stderr
    assert full.returncode == 2
    assert full.stderr.startswith("error: ")
    assert full.stderr.count("\n") == 1


def test_other_encodings_hold_every_label_as_escapes(tmp_path: Path) -> None:
    settings = "--set data.store=größe/💥"
    for encoding, written in (("ascii", "utf-8"), ("latin-1", "latin-1")):  # click writes UTF-8 for ASCII
        line = f"{DISTKG} config preset:demo {settings}"
        result = shell(line, encoding=written, PYTHONIOENCODING=encoding, LANG="C")
        assert result.returncode == 0, result.stderr
        (tmp_path / "printed.yaml").write_text(result.stdout)
        assert parse_yaml(result.stdout, "printed")["data"]["store"] == "größe/💥"
        assert load_config(str(tmp_path / "printed.yaml")).data.store == "größe/💥"
    failed = shell(f"{DISTKG} config größe.yaml", PYTHONIOENCODING="ascii")
    assert failed.returncode == 2
    assert "größe.yaml" in failed.stderr or "gr\\xf6\\xdfe.yaml" in failed.stderr  # click writes UTF-8 for ASCII


@pytest.mark.slow
def test_labels_in_any_output(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text(
        "zürich\tliegt in\tschweiz\nbern\tliegt in\tschweiz\n💥\tliegt in\tbern\n", "utf-8"
    )
    made = shell(f"{DISTKG} prepare {tmp_path} --store {tmp_path / 'store'}", PYTHONIOENCODING="ascii")
    assert made.returncode == 0, made.stderr
    line = f"{DISTKG} negatives {tmp_path / 'store'} --json --show 3"
    for encoding in ("ascii", "utf-8"):
        found = json.loads(shell(line, PYTHONIOENCODING=encoding).stdout)
        assert {example["answer"] for example in found["examples"]} <= {"schweiz", "bern", "zürich", "💥"}
    table = shell(f"{DISTKG} negatives {tmp_path / 'store'} --show 3", PYTHONIOENCODING="ascii", COLUMNS="1")
    assert table.returncode == 0, table.stderr
    assert "Traceback" not in table.stderr


def test_a_terminal_of_one_column() -> None:
    result = shell(f"script -qec '{DISTKG} presets' /dev/null < /dev/null | tail -c 300", COLUMNS="1", TERM="dumb")
    assert "Traceback" not in result.stdout + result.stderr
