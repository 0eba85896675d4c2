"""Runs of foundation models on a simulated device: losses and metrics are those of the CPU."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from distkg.sharding.ranks import Ranks
from distkg.training import run
from tests.golden.runs import figures_of
from tests.simulated_device import DEVICE, SimulatedDevice


@pytest.mark.parametrize("name", ["rgcn", "nbfnet", "ultra", "trix_relations"])
def test_a_run_is_that_of_the_host(
    name: str, small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "REPORT_SECONDS", math.inf)  # the case sets it, and leaves it so
    case = f"foundation {name}"
    expected = figures_of(Ranks.single(), case, small_store, str(tmp_path / "host"))
    with SimulatedDevice():
        found = figures_of(Ranks(device=DEVICE), case, small_store, str(tmp_path / "device"))
    assert found["losses"][:4] == pytest.approx(expected["losses"][:4], rel=1e-4)
    assert found["losses"] == pytest.approx(expected["losses"], rel=5e-2)  # Adam carries rounding on
    for split, metrics in expected["metrics"].items():
        assert found["metrics"][split]["mrr"] == pytest.approx(metrics["mrr"], abs=0.1)
