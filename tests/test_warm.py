"""Kernels compiled ahead of time: a run afterwards compiles nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distkg.config import RunConfig, load_config, preset_names
from distkg.data.generate import generate
from distkg.warm import smallest

CONFIG = "model: {name: transe, dim: 16, options: {norm: l2}}\nobjective: {name: logistic}\n"


def distkg(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distkg", *arguments]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_run_of_a_warm_configuration_compiles_nothing(tmp_path: Path) -> None:
    config, cache = tmp_path / "my.yaml", tmp_path / "cache"
    config.write_text(CONFIG)
    cache.mkdir()
    warmed = distkg("warm", str(config), cache=cache)
    assert warmed.returncode == 0, warmed.stderr
    assert warmed.stdout.startswith(f"{config}: ")
    compiled = sorted(path.name for path in cache.rglob("*.nbc"))
    assert any(name.startswith("products.compare_with_products-") for name in compiled)

    generate(str(tmp_path / "store"), entities=90, relations=5, triples=700, seed=3)
    changes = [f"data.store={tmp_path / 'store'}", "train.epochs=1", "train.workers=2", "train.batch_size=64"]
    options = [argument for change in changes for argument in ("--set", change)]
    trained = distkg("train", str(config), "--run", str(tmp_path / "run"), *options, cache=cache)
    assert trained.returncode == 0, trained.stderr
    assert sorted(path.name for path in cache.rglob("*.nbc")) == compiled


def test_a_configuration_that_does_not_run_is_named_and_the_exit_code_is_1(tmp_path: Path) -> None:
    config = tmp_path / "ultra.yaml"
    config.write_text("model: {name: ultra, start: nowhere}\nobjective: {name: self_adversarial}\n")
    done = distkg("warm", str(config), "--json", cache=tmp_path)
    assert done.returncode == 1
    (warmed,) = json.loads(done.stdout)
    assert warmed["name"] == str(config)
    assert "nowhere" in warmed["error"]


def test_an_unknown_preset_is_an_error_before_anything_is_compiled(tmp_path: Path) -> None:
    done = distkg("warm", "preset:none", cache=tmp_path)
    assert done.returncode == 2
    assert "there is no preset 'preset:none'" in done.stderr
    assert not list(tmp_path.rglob("*.nbc"))


@pytest.mark.parametrize("name", sorted(preset_names()))
def test_the_smallest_configuration_keeps_what_chooses_kernels(name: str) -> None:
    config = load_config(f"preset:{name}")
    small = smallest(config, "store")
    assert isinstance(small, RunConfig)
    assert small.train.workers == 1
    assert not small.negatives.pool.actors
    assert (small.model.name, small.model.dim) == (config.model.name, config.model.dim)
    assert small.objective == config.objective
    assert small.optimizer == config.optimizer
    assert (small.negatives.source, small.negatives.shared) == (config.negatives.source, config.negatives.shared)
