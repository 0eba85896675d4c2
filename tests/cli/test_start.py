"""Commands that need no tensors start without torch, whose import takes seconds; the others without SymPy and SciPy."""

from __future__ import annotations

import subprocess
import sys
import tempfile
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


def test_a_run_a_plan_and_predictions_need_neither_sympy_nor_scipys_algebra(tmp_path: Path) -> None:
    """torch imports one for gradients that are given, numba the other before its first kernel: .6 s together."""
    generate(str(tmp_path / "store"), entities=40, relations=3, triples=200, seed=1)
    settings = {"data.store": str(tmp_path / "store"), "train.epochs": 1, "train.workers": 1, "model.dim": 4}
    chosen = tuple(part for name, value in settings.items() for part in ("--set", f"{name}={value}"))
    run, question = str(tmp_path / "run"), ("--anchor", "person_0", "--relation", "works_at")
    for arguments in (
        ("plan", "preset:complex_wn18rr", *chosen),
        ("train", "preset:complex_wn18rr", *chosen, "--run", run),
        ("predict", run, *question),
    ):
        assert "torch" in (imported := modules_of(arguments))
        assert imported.isdisjoint({"sympy", "scipy.linalg"})


def assert_no_torch(arguments: tuple[str, ...]) -> None:
    assert modules_of(arguments).isdisjoint({"torch", "numba", "ray", "pandas"})


def modules_of(arguments: tuple[str, ...]) -> set[str]:
    """Modules that a command imports."""
    script = f"""
import sys
from distkg.cli import main
try:
    main({list(arguments)})
finally:
    print(*sys.modules, file=open(sys.argv[1], "w"))
"""
    with tempfile.NamedTemporaryFile("r") as names:
        done = subprocess.run([sys.executable, "-c", script, names.name], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout
        return set(names.read().split())
