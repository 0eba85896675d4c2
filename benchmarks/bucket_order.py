"""Quality of an epoch in buckets of entity partitions, as a table on disk needs it, beside the random order.

A preset with one worker and ``--epochs``, as many trainings side by side as there are cores, once for each seed, ranked
exactly on the test split.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common import Figures, begin, finish, graph_settings, rows_wanted
from benchmarks.limited_time import METRICS, SMALL
from benchmarks.processes import side_by_side
from distkg.config import RunConfig, load_config
from distkg.data.store.graph_store import Store
from distkg.search.space import with_parameters
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank

SHARES = {"random order": 1.0, "half of the entities": 0.5, "a quarter": 0.25, "a tenth": 0.1}
"""Row of the table → ``train.resident_share``."""


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every share with every seed; ``--repetitions`` seeds."""
    session = begin(__file__, str(__doc__), arguments, "store", "preset", "epochs", "variants", repetitions=1)
    options, rows = session.options, rows_wanted(session, SHARES)
    shared = [f"data.store={session.store}", f"train.epochs={options.epochs}", "train.time_limit_seconds=null"]
    runs = [(row, seed) for seed in session.repetitions for row in rows]
    configs = [
        load_config(f"preset:{options.preset}", [*shared, f"train.seed={seed}", f"train.resident_share={SHARES[row]}"])
        for row, seed in runs
    ]
    if session.quick:
        configs = [with_parameters(config, SMALL) for config in configs]
    figures = Figures()
    for (row, _), metrics in zip(runs, side_by_side(_test_metrics, configs), strict=True):
        figures.add(row, {column: metrics[metric] for metric, column in METRICS.items()})
    settings = {"preset": options.preset, "epochs": options.epochs, "shares": SHARES}
    settings |= {"configuration": configs[0].model_dump(), "graph": graph_settings(Store.open(session.store))}
    return finish(session, settings, figures, part=f"{options.preset}-{Path(session.store).name}")


def _test_metrics(config: RunConfig) -> dict[str, float]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        metrics: dict[str, float] = train_on_rank(config, Path(folder) / "run", Ranks.single())["metrics"]["test"]
    return metrics


if __name__ == "__main__":
    main()
