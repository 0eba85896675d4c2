"""Foretold and measured: seconds of an epoch and peak memory of a worker, side by side for ten configurations.

Every configuration is planned as by ``distkg plan``, then trained for two epochs with validation, a checkpoint and
ranks of a hundred triples, on gloo workers in fresh processes. Seconds are those of the second epoch's steps; the
processor's are those of the first worker, which other work on the machine does not lengthen. Memory is that of the
largest worker; the plan's has room for a Ray worker's process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkError, Figures, begin, finish, rows_wanted
from benchmarks.processes import on_ranks
from distkg.config import RunConfig, parse_config
from distkg.data.generate import generate
from distkg.planning.preflight import plan_run
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank

Tree = dict[str, dict[str, Any]]

GRAPHS = {"small": (5000, 33_000), "middle": (30_000, 200_000), "large": (100_000, 700_000)}
QUICK_GRAPHS = dict.fromkeys(GRAPHS, (300, 2000))


def sampled(scorer: str, dim: int = 128, objective: str = "logistic", count: int = 128, **sections: Any) -> Tree:
    """An epoch with sampled negatives."""
    tree: Tree = {
        "model": {"name": scorer, "dim": dim},
        "objective": {"name": objective},
        "optimizer": {"name": "adagrad"},
        "negatives": {"count": count},
        "train": {"batch_size": 4096, "epochs": 2},
        "evaluate": {"every": 2, "max_valid_triples": 50, "max_final_triples": 50},
        "checkpoint": {"every": 2},
    }
    return {**tree, **{name: tree.get(name, {}) | section for name, section in sections.items()}}


def all_entities(scorer: str, objective: str, workers: int = 1, **options: Any) -> Tree:
    """An epoch in which every entity is scored."""
    tree = sampled(scorer, objective=objective, train={"batch_size": 1024, "epochs": 2, "workers": workers})
    tree["objective"] |= options
    return {name: section for name, section in tree.items() if name != "negatives"}


def foundation() -> Tree:
    return {
        "model": {"name": "ultra", "options": {"width": 32, "layers": 4, "hidden": 32}},
        "objective": {"name": "logistic"},
        "optimizer": {"name": "adam"},
        "negatives": {"count": 32},
        "train": {"batch_size": 32, "epochs": 2, "steps_per_epoch": 10},
        "evaluate": {"every": 2, "batch_size": 32, "max_valid_triples": 16, "max_final_triples": 16},
        "checkpoint": {"every": 2},
    }


CASES: dict[str, tuple[str, Tree]] = {
    "DistMult, logistic": ("large", sampled("distmult")),
    "ComplEx, self-adversarial, adam": (
        "large",
        sampled("complex", objective="self_adversarial", optimizer={"name": "adam"}),
    ),
    "ComplEx, 2 workers": ("large", sampled("complex", train={"workers": 2})),
    "TransE L1": ("middle", sampled("transe", model={"options": {"norm": "l1"}})),
    "RotatE, 2 workers": ("middle", sampled("rotate", train={"workers": 2})),
    "TuckER": ("middle", sampled("tucker", dim=64)),
    "DistMult, relational negatives": ("middle", sampled("distmult", negatives={"source": "relational", "count": 64})),
    "ComplEx, 1-vs-all": ("small", all_entities("complex", "one_vs_all")),
    "TransE L2, query sampling, 2 workers": (
        "small",
        all_entities("transe", "query_sampling", 2, square_positives=False),
    ),
    "ULTRA": ("small", foundation()),
}


def train(ranks: Ranks, tree: Tree, folder: str) -> tuple[float, float]:
    """Train a run, and return the seconds of the second epoch's steps and the processor's of this rank; collective."""
    clock: list[float] = []
    train_on_rank(
        parse_config(tree, "this benchmark"), Path(folder), ranks, listener=lambda _: clock.append(time.process_time())
    )
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    first = next(number for number, line in enumerate(lines) if line["epoch"] >= 1)
    later = lines[first + 1 :]
    seconds = sum(sum(line["seconds"].values()) for line in later)
    return seconds, clock[-1] - clock[first] if clock else 0.0


def side_by_side(row: str, folder: Path, number: int) -> dict[str, float]:
    """Plan and train a row of the table."""
    graph, tree = CASES[row]
    tree = {**tree, "data": {"store": str(folder / graph)}}
    config: RunConfig = parse_config(tree, "this benchmark")
    planned = plan_run(config)
    finished = on_ranks(config.train.workers, train, tree, str(folder / f"run-{number}-{list(CASES).index(row)}"))
    (seconds, processor), peak = finished[0].value, max(worker.peak_mb for worker in finished)
    assert planned.seconds_per_epoch is not None
    memory = planned.total_bytes / 1e6
    return {
        "foretold s": planned.seconds_per_epoch,
        "measured s": seconds,
        "processor s": processor,
        "measured / foretold": seconds / planned.seconds_per_epoch,
        "planned MB": memory,
        "peak MB": peak,
        "planned / peak": memory / peak,
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every row in every repetition."""
    session = begin(__file__, str(__doc__), arguments, "folder", "variants", repetitions=1)
    folder, graphs = Path(session.options.folder), QUICK_GRAPHS if session.quick else GRAPHS
    if folder.exists():
        raise BenchmarkError(f"{folder} exists; name a new folder: graphs and runs are made in it")
    for name, (entities, triples) in graphs.items():
        generate(str(folder / name), entities=entities, relations=6, triples=triples, seed=0)
    figures = Figures()
    for number in session.repetitions:
        for row in rows_wanted(session, CASES):
            figures.add(row, found := side_by_side(row, folder, number))
            print(f"{row}: {', '.join(f'{column} {value:.3g}' for column, value in found.items())}", flush=True)
    settings = {"graphs": {name: {"entities": size[0], "triples": size[1]} for name, size in graphs.items()}}
    return finish(session, settings, figures)


if __name__ == "__main__":
    main()
