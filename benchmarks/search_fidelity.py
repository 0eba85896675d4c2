"""Quality found by a search in the same seconds: rungs on k-cores, beside trials on the whole graph that ASHA stops.

Each row is a search by `distkg tune` in a process of its own, over the same space, with the same seed. Rungs have the
budget of some full runs and spend it as successive halving on k-cores does; ASHA then runs as many trials as end within
the seconds that the trials of the rungs took. The first trial is CONFIG itself in both. The configuration that each
search found is then trained in full, outside the budget, so that both are compared by the validation MRR of the whole
graph. Seconds of training are those of the trials' records; seconds of the search have the start of Ray and of workers,
and the stores of cores, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import BenchmarkError, Figures, begin, finish, graph_settings, settings_of
from distkg.data.store.graph_store import Store
from distkg.search.space import SPACES
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank

ASHA, RUNGS = "ASHA on the whole graph", "rungs on k-cores"
LOOK_SECONDS = 0.2
SPACE = "bilinear"


@dataclass(frozen=True)
class Work:
    """Sizes of a comparison.

    Attributes:
        epochs: epochs of a full run.
        full_runs: budget of a search, in full runs.
        trials: configurations of the first rung.
        rungs: number of rungs.
        dim: floats of an entity vector.
    """

    epochs: int
    full_runs: float
    trials: int
    rungs: int
    dim: int


def config_of(store: str, work: Work, seed: int) -> dict[str, Any]:
    """Return the configuration of a full run: ComplEx with the settings of its preset for CoDEx-S in a smaller size."""
    return {
        "data": {"store": store},
        "model": {"name": "complex", "dim": work.dim},
        "objective": {"name": "one_vs_all"},
        "regularizer": {"name": "n3", "weight": 0.01},
        "optimizer": {"name": "adagrad", "learning_rate": 0.1},
        "train": {"workers": 1, "epochs": work.epochs, "batch_size": 512, "seed": seed},
        "evaluate": {"every": max(1, work.epochs // 8)},
        "checkpoint": {"every": 100_000},
    }


def run_search(folder: Path, config: dict[str, Any], options: Sequence[str], seconds: float | None) -> float:
    """Search in FOLDER/search and return the seconds of the command; stop it after ``seconds`` of training.

    Raises:
        BenchmarkError: the search failed; the message has its output.
    """
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    paths = [str(folder / name) for name in ("config.yaml", "search")]
    space = str(SPACES / f"{SPACE}.yaml")
    command = [sys.executable, "-m", "distkg", "tune", paths[0], "--space", space, "--run", paths[1], *options]
    started = time.monotonic()
    with (folder / "output").open("w") as output:
        search = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while search.poll() is None:
            time.sleep(LOOK_SECONDS)
            if seconds is not None and sum(trial["seconds"] for trial in ended_trials(folder)) >= seconds:
                search.terminate()
                search.wait()
    if search.returncode not in (0, 143, -15):
        raise BenchmarkError((folder / "output").read_text())
    return time.monotonic() - started


def ended_trials(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the trials that have ended."""
    log = folder / "search" / "search.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def full_run(folder: Path, configuration: Path) -> tuple[float, float]:
    """Train a configuration in full, in this process; return its best validation MRR and its seconds."""
    from distkg.config import load_config

    train_on_rank(load_config(str(configuration)), folder, Ranks.single())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return max(line["valid"]["mrr"] for line in lines if "valid" in line), lines[-1]["time"]


def config_run(store: str, work: Work, seed: int) -> tuple[float, float]:
    """Train CONFIG itself in full; as `full_run`."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.yaml").write_text(yaml.safe_dump(config_of(store, work, seed)))
        return full_run(Path(name) / "run", Path(name) / "config.yaml")


def measure(store: str, work: Work, seed: int, seconds: float | None = None) -> dict[str, float]:
    """Search by rungs, or by ASHA for ``seconds`` of training, and train in full what was found."""
    with tempfile.TemporaryDirectory() as name:
        folder, config = Path(name), config_of(store, work, seed)
        if seconds is None:
            options = ["--trials", str(work.trials), "--rungs", str(work.rungs), "--budget", str(work.full_runs)]
            wall = run_search(folder, config, options, None)
        else:
            wall = run_search(folder, config, ["--trials", "1000"], seconds)
        trials = ended_trials(folder)
        mrr, full_run_seconds = full_run(folder / "full", folder / "search" / "best.yaml")
    return {
        "valid MRR": mrr,
        "training s": sum(trial["seconds"] for trial in trials),
        "search s": wall,
        "trials": len(trials),
        "full run s": full_run_seconds,
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure CONFIG itself, and what each row finds; a repetition is a seed."""
    session = begin(__file__, str(__doc__), arguments, "store", repetitions=3)
    work = Work(8, 2.0, 4, 2, 16) if session.quick else Work(16, 3.0, 27, 3, 64)
    store, figures = str(Path(session.store).absolute()), Figures()
    config_run(store, replace(work, epochs=1), 0)  # compiles what the measured runs use
    for seed in session.repetitions:
        mrr, unit = config_run(store, work, seed)
        figures.add("CONFIG", {"valid MRR": mrr, "full run s": unit})
        by_rungs = measure(store, work, seed)
        figures.add(RUNGS, by_rungs)
        figures.add(ASHA, measure(store, work, seed, by_rungs["training s"]))
    return finish(session, settings_of(work, space=SPACE, graph=graph_settings(Store.open(store))), figures)


if __name__ == "__main__":
    main()
