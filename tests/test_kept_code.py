"""Compiled code of one checkout is used in another with the same sources, and in no other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kept_code import MOST, bring, keep, place_of

CALLED = "import numba\n\n@numba.njit(cache=True)\ndef called(x):\n    return x + {}\n"
CALLS = """
import numba
from package.called import called

@numba.njit(cache=True)
def calls(x):
    return called(x)

print(calls(1), sum(calls.stats.cache_hits.values()))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return write(tmp_path / "first", 1)


def write(folder: Path, added: int) -> Path:
    package = folder / "package"
    package.mkdir(parents=True)
    (package / "called.py").write_text(CALLED.format(added))
    (package / "calls.py").write_text(CALLS)
    return package


def run(package: Path) -> str:
    """What the call gives, and how many functions were not compiled for it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
    command = [sys.executable, "-c", "import package.calls"]
    return subprocess.run(
        command, cwd=package.parent, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_another_checkout_of_the_same_sources_compiles_nothing(checkout: Path, tmp_path: Path) -> None:
    assert run(checkout) == "2 0"
    kept = tmp_path / "kept"
    assert keep(checkout, place_of(checkout, kept)) == 4
    again = write(tmp_path / "again", 1)
    assert bring(again, place_of(again, kept)) == 4
    assert run(again) == "2 1"
    assert bring(again, place_of(again, kept)) == 0


def test_a_change_of_a_function_that_is_called_is_another_place(checkout: Path, tmp_path: Path) -> None:
    run(checkout)
    kept = tmp_path / "kept"
    keep(checkout, place_of(checkout, kept))
    changed = write(tmp_path / "changed", 5)
    assert bring(changed, place_of(changed, kept)) == 0
    assert run(changed) == "6 0"


def test_the_latest_few_are_kept(checkout: Path, tmp_path: Path) -> None:
    (checkout / "__pycache__").mkdir()
    (checkout / "__pycache__" / "x.nbc").write_bytes(b"code")
    kept = tmp_path / "kept"
    for number in range(MOST + 2):
        keep(checkout, kept / f"{number}")
        os.utime(kept / f"{number}", (number, number))
    bring(checkout, kept / "2")
    keep(checkout, kept / "last")
    assert {each.name for each in kept.iterdir()} == {"2", *(str(n) for n in range(4, MOST + 2)), "last"}
    shutil.rmtree(checkout / "__pycache__")
    assert bring(checkout, kept / "last") == 1
    assert (checkout / "__pycache__" / "x.nbc").read_bytes() == b"code"
