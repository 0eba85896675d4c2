"""A scorer in a package of somebody else: one file and one entry point, and everything that distkg does for scorers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from distkg.data.generate import generate

SCORER = '''"""Translation in a torus: entities are angles, and a relation turns them."""

import math

import torch

from distkg.kernels.scores.similarity import DOT
from distkg.embedding.scorers.base import SCORERS, Scorer


@SCORERS.register("torus")
class Torus(Scorer):
    """Inner product of the head, turned by the relation's angles, and the tail."""

    similarity = DOT

    def query(self, anchor, relation):
        (a, b), (c, s) = anchor.chunk(2, -1), (relation.chunk(2, -1)[0].cos(), relation.chunk(2, -1)[0].sin())
        return torch.cat([a * c - b * s, a * s + b * c], -1)

    def init_entities(self, rows, generator):
        rows.normal_(0, 0.3, generator=generator)

    def init_relations(self, rows, generator):
        rows.uniform_(-math.pi, math.pi, generator=generator)
'''
READER = '''"""Triples as Prolog writes them: ``likes(anna, ben).``"""

import re

import numpy as np
import pyarrow as pa

from distkg.data.readers.formats import READERS
from distkg.data.readers.text_blocks import LabelBatch


@READERS.register("pl")
def read_prolog(file, problems):
    """Stream the facts of a Prolog file."""
    text = file.location.read_bytes().decode()
    facts = [re.fullmatch(r"(\\w+)\\((\\w+), (\\w+)\\)\\.", line).groups() for line in text.splitlines()]
    relation, head, tail = (pa.array(column, pa.utf8()) for column in zip(*facts))
    yield LabelBatch((head, relation, tail), np.arange(1, len(facts) + 1))
'''
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "torus-scorer"
version = "1.0"

[project.entry-points."distkg.scorers"]
torus = "torus_scorer"
broken = "torus_scorer_that_is_not_there"

[project.entry-points."distkg.readers"]
pl = "prolog_reader"
"""

Distkg = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def distkg(tmp_path_factory: pytest.TempPathFactory) -> Distkg:
    """Runs commands where the package is installed."""
    folder = tmp_path_factory.mktemp("plug_in")
    (folder / "source").mkdir()
    (folder / "source" / "torus_scorer.py").write_text(SCORER)
    (folder / "source" / "prolog_reader.py").write_text(READER)
    modules = '\n[tool.setuptools]\npy-modules = ["torus_scorer", "prolog_reader"]\n'
    (folder / "source" / "pyproject.toml").write_text(PROJECT + modules)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*install, str(folder / "site"), str(folder / "source")], check=True, capture_output=True)
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder / "site"), root])}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "distkg", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    return run


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    generate(str(folder / "store"), entities=150, relations=6, triples=1500, seed=3)
    tree = {
        "data": {"store": str(folder / "store")},
        "model": {"name": "torus", "dim": 16},
        "objective": {"name": "one_vs_all"},
        "train": {"epochs": 20, "batch_size": 200, "workers": 2},
        "evaluate": {"every": 20},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_scorer_is_one_file_of_forty_lines_and_one_entry_point() -> None:
    assert len(SCORER.splitlines()) <= 40


def test_it_is_listed_and_planned(distkg: Distkg, settings: Path) -> None:
    assert "torus" in succeeded(distkg("presets", "--scorers"))
    assert json.loads(succeeded(distkg("plan", settings, "--json")))["parameters"] == 150 * 16 + 2 * 6 * 16


def test_one_that_cannot_be_imported_says_why_when_it_is_asked_for(distkg: Distkg, settings: Path) -> None:
    result = distkg("plan", settings, "--set", "model.name=broken")
    assert result.returncode == 2
    assert "scorer 'broken' is a plug-in that cannot be used: torus_scorer_that_is_not_there" in result.stderr
    assert "ModuleNotFoundError" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_format_is_read_by_its_extension_and_by_its_name(distkg: Distkg, tmp_path: Path) -> None:
    facts = "likes(anna, ben).\nlikes(ben, carl).\nknows(carl, anna).\n"
    (tmp_path / "train.pl").write_text(facts)
    (tmp_path / "facts.txt").write_text(facts)
    options = ["--valid", tmp_path / "facts.txt", "--format", "pl"]
    succeeded(distkg("prepare", tmp_path, "--store", tmp_path / "folder"))
    succeeded(distkg("prepare", tmp_path / "facts.txt", "--store", tmp_path / "file", *options))
    for store in ("folder", "file"):
        manifest = json.loads((tmp_path / store / "manifest.json").read_text())
        assert (manifest["entities"], manifest["relations"], manifest["triples"]["train"]) == (3, 2, 3)
    result = distkg("prepare", tmp_path / "facts.txt", "--store", tmp_path / "x", "--format", "turtle")
    assert result.returncode == 2
    assert "--format 'turtle' is unknown. Known: auto, tsv, parquet" in result.stderr
    assert "pl" in result.stderr


@pytest.mark.slow
@pytest.mark.cluster
def test_it_is_trained_evaluated_exported_and_tuned_on_ray(distkg: Distkg, settings: Path, tmp_path: Path) -> None:
    succeeded(distkg("train", settings, "--run", tmp_path / "run"))
    trained = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["test"]["mrr"]
    assert trained > 0.1, "entities were not learned"
    assert json.loads(succeeded(distkg("evaluate", tmp_path / "run", "--json")))["metrics"]["mrr"] == trained
    succeeded(distkg("export", tmp_path / "run", "--to", tmp_path / "export"))
    (tmp_path / "space.yaml").write_text("optimizer.learning_rate: {choice: [0.05, 0.1]}\n")
    search = ["--space", tmp_path / "space.yaml", "--run", tmp_path / "search", "--trials", "1"]
    succeeded(distkg("tune", settings, *search, "--set", "train.workers=1", "--set", "train.epochs=2"))
    assert (tmp_path / "search" / "best.yaml").exists()
