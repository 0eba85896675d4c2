"""Workers that stay from run to run: their runs are those of new workers, also after one of them was killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import run_ranks

from distkg.cluster.kept_workers import KeptWorkers
from distkg.cluster.launch import run_on_workers
from distkg.config import RunConfig
from distkg.data.generate import generate
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank
from tests.monitoring import Scraper

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]


def config(store: Path, dim: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"store": str(store)},
            "model": {"name": "complex", "dim": dim},
            "train": {"epochs": 2, "workers": 2, "batch_size": 64},
            "evaluate": {"every": 1},
            "cluster": {"max_failures": 1},
        }
    )


def train_here(ranks: Ranks, config: RunConfig, run: str) -> dict[str, Any]:
    return train_on_rank(config, Path(run), ranks)


def figures(run: Path) -> list[tuple[float, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["loss"], line["valid"]["mrr"]) for line in lines]


def test_runs_of_kept_workers_are_those_of_new_ones(tmp_path: Path, metrics_page: str) -> None:
    generate(str(tmp_path / "store"), entities=150, relations=4, triples=1500, seed=2)
    small, large = config(tmp_path / "store", 8), config(tmp_path / "store", 64)
    kept = KeptWorkers(small)

    def train(config: RunConfig, run: Path, ranks: Ranks, **services: Any) -> dict[str, Any]:
        if run.name == "killed" and ranks.rank == 1 and not (run / "once").exists():
            (run / "once").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        processes = ranks.all_gather(torch.tensor([os.getpid()])).tolist()
        return {**train_on_rank(config, run, ranks, **services), "processes": processes}

    processes = {}
    try:
        for name, chosen in (("first", small), ("other", large), ("again", small), ("killed", large), ("last", small)):
            processes[name] = run_on_workers(train, chosen, tmp_path / name, kept=kept)["processes"]
    finally:
        kept.close()
    run_ranks(2, train_here, small, str(tmp_path / "new small"))
    run_ranks(2, train_here, large, str(tmp_path / "new large"))

    assert len(figures(tmp_path / "new small")) == 2
    for name in ("first", "again", "last"):
        assert figures(tmp_path / name) == figures(tmp_path / "new small")
    for name in ("other", "killed"):
        assert figures(tmp_path / name) == figures(tmp_path / "new large")
    assert processes["first"] == processes["other"] == processes["again"]
    assert processes["killed"] == processes["last"]
    assert not set(processes["first"]) & set(processes["last"])
    # The other worker may notice the loss before Ray does: a line of its own.
    *_, lost = losses = [json.loads(line) for line in (tmp_path / "killed" / "failures.jsonl").read_text().splitlines()]
    assert 1 <= len(losses) <= 2
    assert (lost["rank"], lost["restart"]) == (1, True)
    assert lost["error"].startswith("its process died")
    scraper, failures = Scraper(metrics_page, str(tmp_path / "killed")), "ray_distkg_worker_failures_total"
    scraper.until(lambda now: [value for _, value in now.get(failures, [])] == [len(losses)])
    assert [value for _, value in scraper.seen[failures]] == [len(losses)]
