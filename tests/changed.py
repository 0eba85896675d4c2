"""Run the tests of what has changed, nearest first, for as long as there is time: ``make check``.

A test file is as near to a changed module as the chain of imports between them is short. A change at the bottom, such
as in ``distkg/config.py``, concerns nearly all tests; what was not reached in the time is counted and said, and
``make test`` runs it. Imports are read from the source: nothing has to be recorded by an earlier run, as tools that
trace tests need, and tests that start programs count too.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("distkg", "jobs", "benchmarks", "tests")
SECONDS = 60.0  # with style and types, less than two minutes
DEADLINE = "DISTKG_TESTS_UNTIL"
NOT_REACHED = "not reached in the time"

Graph = dict[str, set[str]]
"""Files by the file that imports them; paths from the root."""


def main() -> int:
    """Run them; pytest's exit code, or 0 where nothing has changed."""
    base = sys.argv[1] if len(sys.argv) > 1 else "main"
    changed = changed_files(base)
    chosen = nearest_tests(changed, import_graph(ROOT), ROOT)
    print(f"{len(changed)} files changed since {base}; {len(chosen)} test files can see it", flush=True)
    if not chosen:
        return 0
    environment = os.environ | {DEADLINE: str(time.time() + SECONDS)}
    # One test at a time for each process, so that the nearest are begun first.
    options = [
        "-p",
        "tests.changed",
        "-m",
        "not slow and not benchmarks",
        "-q",
        "-n",
        "2",
        "--dist",
        "load",
        "--maxschedchunk",
        "1",
    ]
    command = [sys.executable, "-m", "pytest", *options, *chosen]
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    return 0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code  # all of them are slow


# ---- in pytest ----


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what comes too late."""
    if time.time() > float(os.environ.get(DEADLINE, "inf")):
        pytest.skip(NOT_REACHED)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many were too late."""
    left = sum(NOT_REACHED in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    if left:
        terminalreporter.line(f"{left} tests were {NOT_REACHED} ({SECONDS:g} s); make test runs them")


# ---- what has changed ----


def changed_files(base: str) -> list[str]:
    """Paths that differ from the commit where this branch left ``base``, those of new files included."""
    fork = _git("merge-base", base, "HEAD") or ["HEAD"]
    return sorted({*_git("diff", "--name-only", fork[0]), *_git("ls-files", "--others", "--exclude-standard")})


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def nearest_tests(changed: Collection[str], graph: Graph, root: Path) -> list[str]:
    """Test files that a change can reach, those with the shortest chain of imports first."""
    importers: Graph = {}
    for file, imported in graph.items():
        for each in imported:
            importers.setdefault(each, set()).add(file)
    distances, reached = dict.fromkeys(_starts(changed, graph, root), 0), 0
    while nearest := [file for file, distance in distances.items() if distance == reached]:
        reached += 1
        for importer in {each for file in nearest for each in importers.get(file, ())} - distances.keys():
            distances[importer] = reached
    tests = [file for file in distances if Path(file).name.startswith("test_") and (root / file).is_file()]
    own = {f"test_{Path(file).stem}.py" for file in changed if file.endswith(".py")}
    return sorted(tests, key=lambda file: (distances[file], Path(file).name not in own, file))


def _starts(changed: Collection[str], graph: Graph, root: Path) -> set[str]:
    """Changed modules, and the tests that name a changed file of another kind, such as a preset."""
    found, tests = set(), [file for file in graph if file.startswith("tests/")]
    for file in changed:
        if file.endswith(".py"):
            found.add(file)
        else:
            found |= {test for test in tests if _called(file) in (root / test).read_text()}
    return found


def _called(file: str) -> str:
    """What a test that reads a file calls it: a preset by its name, another by its name and ending, or in whole."""
    if file.startswith("distkg/presets/"):
        return Path(file).stem
    return Path(file).name if "." in Path(file).name else file


# ---- who imports whom ----


def import_graph(root: Path) -> Graph:
    """What each Python file of the project imports of the project, also within functions."""
    files = [str(path.relative_to(root)) for source in SOURCES for path in sorted((root / source).rglob("*.py"))]
    known = {name: file for file in files for name in _names(file)}
    return {file: _imported(root, file, known) for file in files}


def _names(file: str) -> list[str]:
    """Names by which a file is imported: those of tests may begin at their folder."""
    parts = file.removesuffix(".py").removesuffix("/__init__").split("/")
    return [".".join(parts), *([parts[-1]] if parts[0] == "tests" else [])]


def _imported(root: Path, file: str, known: dict[str, str]) -> set[str]:
    tree = ast.parse((root / file).read_text())
    found = {known[name] for node in ast.walk(tree) for name in _mentioned(node) if name in known}
    if file.startswith("tests/"):  # each test sees what its folders' conftest.py has
        found |= {str(folder / "conftest.py") for folder in Path(file).parents if str(folder) != "."}
    return found - {file}


def _mentioned(node: ast.AST) -> Iterator[str]:
    """Names of modules that an import may run: of the package, of its packages, and of what is taken from it."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    else:
        return
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


if __name__ == "__main__":
    sys.exit(main())
