"""Trainings of foundation models that are asked about graphs once they are done, and kept: what is done stays done."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.processes import side_by_side
from distkg.config import RunConfig
from distkg.foundation.model_files import load_model
from distkg.foundation.models import FoundationModel
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank

Outcome = dict[str, Any]
Asked = Mapping[str, Mapping[str, float]]
"""What is asked about → metric → value."""


@dataclass(frozen=True)
class KeptRun:
    """A training, and what is asked of its model.

    Attributes:
        config: of the training.
        folder: of the run; its outcome is read from there if it is done.
        ask: importable, or a ``partial`` of what is.
    """

    config: RunConfig
    folder: Path
    ask: Callable[[FoundationModel], Asked]


def outcomes(runs: Sequence[KeptRun]) -> Iterator[Outcome]:
    """Of each, in their order: "graphs" is what was asked, beside "CPU ms/step", "peak MB" and "validation MRR".

    Each is trained in a process of one thread, as many side by side as there are cores.
    """
    return side_by_side(_outcome, runs)


def loss_curve(run: KeptRun) -> list[list[float]]:
    """Step and loss of every report."""
    reports = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [[report["step"], round(report["loss"], 4)] for report in reports]


def _outcome(run: KeptRun) -> Outcome:
    done = run.folder / "outcome.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    torch.set_num_threads(1)
    shutil.rmtree(run.folder, ignore_errors=True)
    started = time.process_time()
    result = train_on_rank(run.config, run.folder, Ranks.single())
    seconds = time.process_time() - started
    found: Outcome = {
        "CPU ms/step": 1e3 * seconds / result["train"]["steps"],
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "validation MRR": result["metrics"].get("valid", {}).get("mrr", float("nan")),
        "steps": result["train"]["steps"],
        "graphs": run.ask(load_model(run.folder)),
    }
    part = done.with_suffix(".part")
    part.write_text(json.dumps(found))
    os.replace(part, done)
    return found
