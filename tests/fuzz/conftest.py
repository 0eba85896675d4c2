"""What fuzz tests share: valid inputs, made once; safety; and the counts of cases at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import harness
from tests.fuzz.world import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(autouse=True)
def safe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No Ray, no memory of others, and a working directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTKG_DEBUG", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with harness.no_ray(), harness.bounded_memory():
        yield


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if harness.counts:
        terminalreporter.section("fuzz cases by surface")
    for surface, codes in sorted(harness.counts.items()):
        by_code = ", ".join(f"exit {code}: {n:,}" for code, n in sorted(codes.items()))
        terminalreporter.line(f"{surface}: {sum(codes.values()):,} cases ({by_code})")
