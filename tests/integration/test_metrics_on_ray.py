"""Metrics of a run as Prometheus reads them from the port of a Ray that runs it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distkg.cluster.kept_workers import KeptWorkers
from distkg.cluster.launch import run_on_workers
from distkg.cluster.watch.run_metrics import count_failure
from distkg.cluster.watch.run_watch import stop_runs
from distkg.config import RunConfig
from distkg.termination import Terminated
from distkg.training.run import train_on_rank
from distkg.training.run_dir import RunFolder
from tests.monitoring import LIMIT, Samples, Scraper, named_metrics

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]


@contextlib.contextmanager
def in_thread(work: Any) -> Iterator[None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(LIMIT)


def config(store: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"store": store},
            "model": {"name": "distmult", "dim": 16},
            "objective": {"name": "self_adversarial", "margin": 2.0},
            "negatives": {
                "source": "nearest_neighbour",
                "options": {"neighbours": 8},
                "count": 4,
                # A step waits for no actor, so some replies are late, and most are not.
                "pool": {"actors": 1, "cpus_per_actor": 0.5, "timeout": 0.0, "fallback": "uniform"},
            },
            "train": {"workers": 2, "epochs": 100_000, "batch_size": 100},
            "evaluate": {"every": 10, "max_valid_triples": 20},
        }
    )


def test_a_scrape_of_a_run_has_every_metric_that_the_dashboard_and_the_alerts_name(
    small_store: str, tmp_path: Path, kept_workers: KeptWorkers, metrics_page: str
) -> None:
    run = tmp_path / "search" / "trials" / "0003"
    search = str(tmp_path / "search")
    scraper = Scraper(metrics_page, search)

    def follow() -> None:
        count_failure(str(run))  # no worker is killed here
        scraper.until(lambda now: named_metrics() <= set(scraper.seen))
        stop_runs([str(run)])

    with in_thread(follow), pytest.raises(Terminated):
        run_on_workers(train_on_rank, config(small_store), run, listener=lambda line: None, kept=kept_workers)
    assert named_metrics() - set(scraper.seen) == set()

    seen = {name.removeprefix("ray_distkg_"): each for name, each in scraper.seen.items()}
    assert {(labels["trial"], labels["rank"]) for labels, _ in seen["peak_memory_bytes"]} == {
        ("0003", "0"),
        ("0003", "1"),
    }
    assert all(2**27 < value < 2**33 for _, value in seen["peak_memory_bytes"])
    shares = {(labels["rank"], labels["phase"]): value for labels, value in seen["phase_share"]}
    assert len(shares) == 8
    for rank in "01":
        assert sum(value for (of, _), value in shares.items() if of == rank) == pytest.approx(1)
    (_, checkpoint), (_, mrr), (_, workers) = (
        seen[name][0] for name in ("checkpoint_time_seconds", "validation_mrr", "workers")
    )
    assert RunFolder(run).last_checkpoint_time() >= checkpoint > time.time() - 600
    assert 0 < mrr <= 1
    assert workers == 2
    assert seen["worker_failures_total"][0][1] == 1
    assert sum(value for _, value in seen["steps_total"]) <= RunFolder(run).last_step()
    assert all("trial" not in labels and "rank" not in labels for labels, _ in seen["triples_total"])

    # After the run its gauges end, and its counters stay.
    ended: list[set[str]] = []

    def only_counters(now: Samples) -> bool:
        ended.append(set(now))
        return all(name.endswith("_total") for name in now)

    scraper.until(only_counters)
    assert {name for name in ended[-1] if not name.endswith("_total")} == set()
    assert "ray_distkg_triples_total" in ended[-1]
