"""Runs of one configuration with changes, under one time limit: the quality that the same time buys."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common import Figures, Session
from distkg.cluster.launch import launch_training
from distkg.config import RunConfig, load_config

METRICS = {"mrr": "MRR", "hits@10": "Hits@10", "hits@1": "Hits@1"}


def changed_config(options: argparse.Namespace, base: str, store: str, changes: Sequence[str], seed: int) -> RunConfig:
    """``base`` (a preset or a file) on the store under ``--seconds``, with a variant's changes."""
    shared = [f"data.store={store}", f"train.time_limit_seconds={options.seconds}", f"train.seed={seed}"]
    small = ["train.workers=1", "train.epochs=1", "model.dim=8", "negatives.count=2"] if options.quick else []
    return load_config(base, [*shared, *changes, *small])


def run_variants(session: Session, base: str, variants: Mapping[str, Sequence[str]]) -> Figures:
    """Test metrics, epochs and triples per second of every variant, once for each seed (``--repetitions`` of them)."""
    figures = Figures()
    for seed in session.repetitions:
        for name, changes in variants.items():
            config = changed_config(session.options, base, session.store, changes, seed)
            with tempfile.TemporaryDirectory() as folder:
                result = launch_training(config, Path(folder) / "run")
            test, trained = result["metrics"]["test"], result["train"]
            shown = {column: test[metric] for metric, column in METRICS.items()}
            rate = {"triples/s": trained["triples_per_second"]}
            figures.add(name, {**shown, "epochs": trained["epochs"], "seconds": trained["seconds"], **rate})
    return figures
