"""Which tests see a change, and in which order."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.changed import DEADLINE, NOT_REACHED, import_graph, nearest_tests

FILES = {
    "distkg/__init__.py": "",
    "distkg/base.py": "",
    "distkg/rooms/__init__.py": "",
    "distkg/rooms/middle.py": "from distkg import base",
    "distkg/top.py": "def late():\n    import distkg.rooms.middle\n",
    "distkg/presets/fast_one.yaml": "",
    "tests/conftest.py": "",
    "tests/shared.py": "from distkg.rooms import middle",
    "tests/rooms/conftest.py": "",
    "tests/rooms/test_a.py": "from shared import middle",
    "tests/rooms/test_middle.py": "from distkg.rooms.middle import x",
    "tests/test_base.py": "from distkg.base import x",
    "tests/test_top.py": "import distkg.top\n'preset:fast_one'",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("changed", "seen_by"),
    [
        # One import away, two (its own name before the others), three.
        ("distkg/base.py", ["tests/test_base.py", "tests/rooms/test_middle.py", "tests/rooms/test_a.py"]),
        ("distkg/rooms/middle.py", ["tests/rooms/test_middle.py", "tests/rooms/test_a.py", "tests/test_top.py"]),
        ("tests/shared.py", ["tests/rooms/test_a.py"]),
        ("tests/rooms/conftest.py", ["tests/rooms/test_a.py", "tests/rooms/test_middle.py"]),
        ("tests/test_top.py", ["tests/test_top.py"]),
        ("distkg/presets/fast_one.yaml", ["tests/test_top.py"]),
        ("notes/unheard_of.md", []),
        ("tools/x", []),
        ("tests/test_removed.py", []),
    ],
)
def test_tests_are_found_by_imports_the_nearest_first(root: Path, changed: str, seen_by: list[str]) -> None:
    found = nearest_tests([changed], import_graph(root), root)
    assert found[: len(seen_by)] == seen_by
    # middle.py imports base.py, which top.py reaches through it.
    assert found[len(seen_by) :] == (["tests/test_top.py"] if changed == "distkg/base.py" else [])


def test_what_is_too_late_is_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text("def test_one(): pass\ndef test_two(): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.changed", "-p", "no:cacheprovider", str(tmp_path)]
    root = str(Path(__file__).resolve().parents[1])
    for late, said in ((False, "2 passed"), (True, f"2 tests were {NOT_REACHED}")):
        until = time.time() + (-1 if late else 1000)
        environment = os.environ | {DEADLINE: str(until), "PYTHONPATH": root}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert said in done.stdout
        assert done.returncode == 0, done.stdout
