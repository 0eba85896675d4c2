"""Commands that need no tensors start without torch, whose import takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distkg.config import RunConfig
from distkg.data.generate import generate
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("train", "--help"),
        ("presets",),
        ("config", "preset:complex_wn18rr", "--set", "model.dim=64"),
        ("config", "preset:ultra"),
        ("config", "--schema"),
    ],
    ids=" ".join,
)
def test_no_torch_is_imported(arguments: tuple[str, ...]) -> None:
    assert_no_torch(arguments)


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    """Though it reads the manifests of checkpoints and checks the store."""
    generate(str(tmp_path / "store"), entities=40, relations=3, triples=200, seed=1)
    config = {
        "data": {"store": str(tmp_path / "store")},
        "model": {"name": "distmult", "dim": 4},
        "train": {"epochs": 1, "workers": 1},
    }
    train_on_rank(RunConfig.model_validate(config), tmp_path / "run", Ranks.single())
    assert (tmp_path / "run" / "checkpoints").is_dir()
    assert_no_torch(("report", str(tmp_path / "run")))


def assert_no_torch(arguments: tuple[str, ...]) -> None:
    script = f"""
import sys
from distkg.cli import main
try:
    main({list(arguments)})
finally:
    print([name for name in ("torch", "numba", "ray", "pandas") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout
