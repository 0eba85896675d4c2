"""Runs of one configuration with changes, under one time limit: the quality that the same time buys."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.common import Figures, Session
from benchmarks.processes import side_by_side
from distkg.cluster.launch import launch_training
from distkg.config import RunConfig, load_config
from distkg.search.space import Parameters, with_parameters
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank
from distkg.training.run_dir import Record

SMALL: Parameters = {"train.workers": 1, "train.epochs": 1, "model.dim": 8, "negatives.count": 2}
METRICS = {"mrr": "MRR", "hits@10": "Hits@10", "hits@1": "Hits@1"}


def changed_config(options: argparse.Namespace, base: str, store: str, changes: Sequence[str], seed: int) -> RunConfig:
    """``base`` (a preset or a file) on the store under ``--seconds``, with a variant's changes."""
    shared = [f"data.store={store}", f"train.time_limit_seconds={options.seconds}", f"train.seed={seed}"]
    config = load_config(base, [*shared, *changes])
    return with_parameters(config, SMALL) if options.quick else config


def run_variants(session: Session, base: str, variants: Mapping[str, Sequence[str]]) -> Figures:
    """Test metrics, epochs and triples per second of every variant, once for each seed (``--repetitions`` of them).

    Trainings of one worker run side by side, one on each core; others by Ray Train, one after the other.
    """
    names = [(name, seed) for seed in session.repetitions for name in variants]
    configs = [changed_config(session.options, base, session.store, variants[name], seed) for name, seed in names]
    lonely = all(config.train.workers == 1 and not config.negatives.pool.actors for config in configs)
    results = side_by_side(_train_here, configs) if lonely else map(_train_on_ray, configs)
    figures = Figures()
    for (name, _), result in zip(names, results, strict=True):
        test, trained = result["metrics"]["test"], result["train"]
        shown = {column: test[metric] for metric, column in METRICS.items()}
        rate = {"triples/s": trained["triples_per_second"]}
        figures.add(name, {**shown, "epochs": trained["epochs"], "seconds": trained["seconds"], **rate})
    return figures


def _train_on_ray(config: RunConfig) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        return launch_training(config, Path(folder) / "run")


def _train_here(config: RunConfig) -> Record:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return train_on_rank(config, Path(folder) / "run", Ranks.single())
