"""What a rank exports of its reports, recorded instead of sent to Ray."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distkg.cluster.session.address import ClusterError
from distkg.cluster.session.private_ray import free_port
from distkg.cluster.watch import run_metrics
from distkg.cluster.watch.run_metrics import LONGEST_LABEL, Evaluations, RunMetrics, labels_of
from distkg.config import RunConfig
from distkg.data.store.graph_store import Store
from distkg.sharding.ranks import Ranks
from distkg.training.observer import RankReport
from distkg.training.run import train_on_rank
from distkg.training.services import Services
from tests.distributed import run_ranks

Series = tuple[tuple[str, str], ...]


class Recorder:
    """Stands for Ray's metrics: the last value of each gauge, and the sum of each counter, by their labels."""

    def __init__(self) -> None:
        self.gauges: dict[str, dict[Series, float]] = {}
        self.counters: dict[str, dict[Series, float]] = {}

    def gauge(self, name: str) -> Any:
        return self._metric(name, run_metrics.GAUGES[name][1])

    def counter(self, name: str) -> Any:
        return self._metric(name, run_metrics.COUNTERS[name][1])

    def _metric(self, name: str, declared: tuple[str, ...]) -> Any:
        recorder = self

        class Metric:
            def set(self, value: float, labels: dict[str, str]) -> None:
                assert sorted(labels) == sorted(declared), name
                recorder.gauges.setdefault(name, {})[tuple(sorted(labels.items()))] = value

            def inc(self, value: float, labels: dict[str, str]) -> None:
                assert sorted(labels) == sorted(declared), name
                assert value > 0
                of_name = recorder.counters.setdefault(name, {})
                series = tuple(sorted(labels.items()))
                of_name[series] = of_name.get(series, 0) + value

        return Metric()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(run_metrics, "gauge", recorder.gauge)
    monkeypatch.setattr(run_metrics, "counter", recorder.counter)
    return recorder


def report(**changes: Any) -> RankReport:
    line = {
        "epoch": 1.5,
        "loss": 0.25,
        "triples_per_second": 1000.0,
        "seconds": {"data": 1.0, "exchange": 2.0, "compute": 5.0, "optimizer": 0.0},
        "peak_rss_mb": 512.0,
        **changes,
    }
    return RankReport(line, ranks=2, steps=10, triples=640.0, bytes_exchanged=4096, rows_fetched=70)


RUN = (("run", "/runs/a"), ("trial", ""))


def test_rank_0_exports_the_run_and_itself(recorder: Recorder) -> None:
    metrics = RunMetrics("/runs/a", 0)
    negatives = {"delivered": 0.75, "late": 3, "old": 0, "lost": 1, "age_median": 4, "age_max": 9, "restarts": 1}
    metrics.report(report(valid={"mrr": 0.5}, negatives=negatives))
    metrics.report(report(negatives={**negatives, "age_median": None, "late": 2}))
    metrics.checkpoint(1_700_000_000.5)
    rank = (("rank", "0"), *RUN)
    assert recorder.gauges == {
        "epoch": {RUN: 1.5},
        "loss": {RUN: 0.25},
        "triples_per_second": {RUN: 1000.0},
        "workers": {RUN: 2},
        "validation_mrr": {RUN: 0.5},
        "checkpoint_time_seconds": {RUN: 1_700_000_000.5},
        "pool_delivered_share": {RUN: 0.75},
        "pool_age_median_steps": {RUN: 4},
        "pool_age_max_steps": {RUN: 9},
        "pool_restarts": {RUN: 1},
        "peak_memory_bytes": {rank: 512e6},
        "phase_share": {
            (("phase", phase), *rank): share
            for phase, share in {"data": 0.125, "exchange": 0.25, "compute": 0.625, "optimizer": 0.0}.items()
        },
    }
    run = (("run", "/runs/a"),)
    assert recorder.counters == {
        "steps_total": {run: 20},
        "triples_total": {run: 1280.0},
        "exchanged_bytes_total": {run: 8192},
        "fetched_rows_total": {run: 140},
        "pool_missed_queries_total": {(("reason", "late"), *run): 5, (("reason", "lost"), *run): 2},
    }


def test_other_ranks_export_themselves_alone(recorder: Recorder) -> None:
    RunMetrics("/searches/s/trials/0012", 3).report(report(valid={"mrr": 0.5}))
    assert set(recorder.gauges) == {"peak_memory_bytes", "phase_share"}
    labels = (("rank", "3"), ("run", "/searches/s"), ("trial", "0012"))
    assert recorder.gauges["peak_memory_bytes"] == {labels: 512e6}
    assert set(recorder.counters) == {"exchanged_bytes_total", "fetched_rows_total"}


def test_a_report_without_steps_has_no_shares(recorder: Recorder) -> None:
    RunMetrics("/runs/a", 0).report(report(seconds={"data": 0.0, "compute": 0.0}))
    assert "phase_share" not in recorder.gauges


def test_gauges_are_repeated_as_they_were(recorder: Recorder) -> None:
    metrics = RunMetrics("/runs/a", 0)
    metrics.report(report(valid={"mrr": 0.5}))
    metrics.report(report(loss=0.125))
    before = {name: dict(series) for name, series in recorder.gauges.items()}
    counted = {name: dict(series) for name, series in recorder.counters.items()}
    recorder.gauges.clear()
    metrics.repeat()
    assert recorder.gauges == before
    assert before["loss"] == {RUN: 0.125}
    assert recorder.counters == counted


def test_the_thread_of_a_worker_repeats_gauges_until_the_run_ends(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeated = threading.Event()
    monkeypatch.setattr(run_metrics.RunMetrics, "repeat", lambda self: repeated.set())

    class Settings:
        metrics_report_interval_ms = staticmethod(lambda: 20)

    monkeypatch.setattr(run_metrics, "Config", Settings)
    with run_metrics.exported("/runs/a", 0):
        (thread,) = (each for each in threading.enumerate() if each.name == "metrics")
        assert repeated.wait(30)
    thread.join(30)
    assert not thread.is_alive()


def evaluate(ranks: Ranks, clock: list[float]) -> list[float]:
    """Validations that a rank passes on; the clock of rank 1 stands still."""
    evaluated: list[float] = []
    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_metrics, "time", SimpleNamespace(monotonic=lambda: 0.0 if ranks.rank else now[0]))
        patch.setattr(RunMetrics, "report", lambda self, report: None)
        observer = Evaluations(RunMetrics("/runs/a", 1), ranks, lambda line: evaluated.append(line["valid"]["mrr"]))
        for mrr, now[0] in enumerate(clock, 1):
            observer.report(report())
            observer.report(report(valid={"mrr": mrr / 8}))
    return evaluated


def test_validations_alone_are_passed_on_at_most_twice_a_second_by_the_first_ranks_clock() -> None:
    assert run_ranks(2, evaluate, [0.0, 0.25, 0.75, 1.0, 5.0]) == [[0.125, 0.375, 0.625]] * 2


def test_without_ray_train_nothing_is_passed_on_nor_exchanged(recorder: Recorder) -> None:
    ranks = SimpleNamespace()  # no collective could be called
    Evaluations(RunMetrics("/runs/a", 1), ranks, None).report(report(valid={"mrr": 0.5}))  # type: ignore[arg-type]
    assert "peak_memory_bytes" in recorder.gauges


@pytest.mark.parametrize(
    ("folder", "run", "trial"),
    [
        ("/shared/runs/a", "/shared/runs/a", ""),
        ("/shared/s/trials/0007", "/shared/s", "0007"),
        ("s3://key:s3cret@bucket/s/trials/0007", "s3://bucket/s", "0007"),
        ("s3://bucket/run?token=s3cret", "s3://bucket/run", ""),
        ("/shared/trials/mine", "/shared/trials/mine", ""),
        ("/runs/\x1b[31mred", "/runs/\\x1b[31mred", ""),
        ("/" + "x" * 500, "x" * LONGEST_LABEL, ""),
    ],
)
def test_labels_name_the_run_without_secrets_and_in_bounds(folder: str, run: str, trial: str) -> None:
    assert labels_of(folder) == {"run": run, "trial": trial}


def test_a_lost_worker_is_counted_for_its_run(recorder: Recorder) -> None:
    run_metrics.count_failure("/searches/s/trials/0001")
    run_metrics.count_failure("/searches/s/trials/0002")
    assert recorder.counters == {"worker_failures_total": {(("run", "/searches/s"),): 2}}


class Sums:
    """Observer that adds up what it receives."""

    def __init__(self) -> None:
        self.reports: list[RankReport] = []
        self.checkpoints: list[float] = []

    def report(self, report: RankReport) -> None:
        self.reports.append(report)

    def checkpoint(self, time: float) -> None:
        self.checkpoints.append(time)

    def totals(self) -> dict[str, float]:
        names = ("steps", "triples", "bytes_exchanged", "rows_fetched")
        return {name: sum(getattr(each, name) for each in self.reports) for name in names}


def train(ranks: Ranks, config: RunConfig, folder: str, resume: bool) -> tuple[dict[str, Any], dict[str, float], int]:
    observer = Sums()
    result = train_on_rank(config, Path(folder), ranks, resume=resume, services=Services(observer=observer))
    return result, observer.totals(), len(observer.checkpoints)


def sampled(store: str, epochs: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"store": store},
            "model": {"name": "distmult", "dim": 8},
            "objective": {"name": "self_adversarial", "margin": 2.0},
            "negatives": {"count": 4},
            "train": {"workers": 2, "epochs": epochs, "batch_size": 100},
            "evaluate": {"every": 1},
        }
    )


def test_reports_of_two_ranks_add_up_to_the_result_and_a_resumed_run_has_its_checkpoint(
    small_store: str, tmp_path: Path
) -> None:
    (result, first, saved), (_, second, none) = run_ranks(
        2, train, sampled(small_store, 2), str(tmp_path / "run"), False
    )
    steps = result["train"]["steps"]
    assert first["steps"] == second["steps"] == steps > 4
    assert first["triples"] == second["triples"] == 2 * Store.open(small_store).manifest.triples["train"]
    assert first["bytes_exchanged"] // steps == result["train"]["bytes_exchanged_per_step"]
    assert 0 < first["rows_fetched"] <= steps * 150  # entities of the graph
    assert 0 < second["rows_fetched"] <= steps * 150
    assert (saved, none) == (2, 0)
    (_, again, saved), _ = run_ranks(2, train, sampled(small_store, 2), str(tmp_path / "run"), True)
    assert again["steps"] == 0
    assert saved == 1  # that of the earlier process


def test_a_port_that_is_taken_is_said_before_ray_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"^cluster\.metrics_port={port}: Address already in use"):
            free_port(port)
    assert free_port(port) == port


@pytest.mark.parametrize("port", [80, 65536, 0])
def test_ports_are_bounded(port: int) -> None:
    with pytest.raises(ValueError, match="metrics_port"):
        RunConfig.model_validate({"cluster": {"metrics_port": port}})
