"""Metrics of a run for Prometheus, exported by Ray on the metrics port of each node with the prefix ``ray_``.

Ray's agent of a node forgets a gauge that is not set again in two of its report intervals (10 s each), and a run sets
its gauges with each line of metrics.jsonl, which may be minutes apart. A thread of each worker therefore repeats them
while the run lasts. After it, gauges end by themselves. Counters stay until the agent ends, so they have no label for
trial or rank: their number grows with runs and searches only.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import torch
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.util.metrics import Counter, Gauge

from distkg.printable import printable
from distkg.redaction import redact
from distkg.sharding.ranks import Ranks
from distkg.training.observer import RankReport
from distkg.training.run_dir import Record

Labels = Mapping[str, str]
Evaluated = Callable[[Record], None]

EVALUATION_SECONDS = 0.5
"""Minimum time between two reports to Ray Train, which takes them from workers five times a second."""

LONGEST_LABEL = 200
"""Maximum number of characters of the label ``run``; of a longer path the end is kept."""

RUN = ("run", "trial")
RANK = (*RUN, "rank")

GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "epoch": ("Epochs trained.", RUN),
    "loss": ("Mean training loss per step since the last report.", RUN),
    "triples_per_second": ("Triples that all workers trained on per second of training.", RUN),
    "workers": ("Workers that train.", RUN),
    "validation_mrr": ("MRR of the last validation.", RUN),
    "checkpoint_time_seconds": ("Unix time at which the newest checkpoint was committed.", RUN),
    "phase_share": ("Share of a phase in the time of training steps since the last report.", (*RANK, "phase")),
    "peak_memory_bytes": ("Peak resident memory of a worker.", RANK),
    "pool_delivered_share": ("Share of queries whose negatives the pool of actors delivered.", RUN),
    "pool_age_median_steps": ("Median age of the vectors behind delivered negatives.", RUN),
    "pool_age_max_steps": ("Largest age of the vectors behind delivered negatives.", RUN),
    "pool_restarts": ("Actors of the pool that were lost and replaced since the start of the workers.", RUN),
}
"""Name of a gauge, without prefix → its description and its labels."""

COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "steps_total": ("Training steps.", ("run",)),
    "triples_total": ("Triples that all workers trained on.", ("run",)),
    "exchanged_bytes_total": ("Bytes that a worker sent to and received from other workers in steps.", ("run",)),
    "fetched_rows_total": ("Entity rows that a worker received from other workers in steps.", ("run",)),
    "pool_missed_queries_total": ("Queries whose negatives the pool did not deliver, by reason.", ("run", "reason")),
    "worker_failures_total": ("Workers that were lost or hung, as in failures.jsonl.", ("run",)),
}
"""Name of a counter, without prefix → its description and its labels."""

MISSED = ("late", "old", "broken", "refused", "failed", "lost")
POOL_GAUGES = {
    "pool_delivered_share": "delivered",
    "pool_age_median_steps": "age_median",
    "pool_age_max_steps": "age_max",
    "pool_restarts": "restarts",
}

_TRIAL = re.compile(r"(.+)/trials/(\d+)")


def labels_of(run: str) -> dict[str, str]:
    """Return the labels of a run folder: ``run``, which for a trial is the folder of its search, and ``trial``.

    They hold no secrets of addresses, and have a bounded length.

    >>> labels_of("/shared/searches/mine/trials/0007")
    {'run': '/shared/searches/mine', 'trial': '0007'}
    """
    trial = _TRIAL.fullmatch(run)
    place, number = (trial[1], trial[2]) if trial else (run, "")
    return {"run": printable(redact(place))[-LONGEST_LABEL:], "trial": number}


class RunMetrics:
    """Observer that exports the metrics of one rank of a run."""

    def __init__(self, run: str, rank: int) -> None:
        self._labels = labels_of(run)
        self._run, self._rank = {"run": self._labels["run"]}, {**self._labels, "rank": str(rank)}
        self._first = rank == 0
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def report(self, report: RankReport) -> None:
        """Export what this rank did, and on rank 0 the state of the run."""
        line = report.line
        self._set("peak_memory_bytes", line["peak_rss_mb"] * 1e6, self._rank)
        seconds: dict[str, float] = line["seconds"]
        for phase, value in seconds.items():
            if any(seconds.values()):
                self._set("phase_share", value / sum(seconds.values()), {**self._rank, "phase": phase})
        self._add("exchanged_bytes_total", report.bytes_exchanged)
        self._add("fetched_rows_total", report.rows_fetched)
        if self._first:
            self._report_run(report, line)
            self._report_pool(line.get("negatives") or {})

    def checkpoint(self, time: float) -> None:
        self._set("checkpoint_time_seconds", time, self._labels)

    def repeat(self) -> None:
        """Export all gauges again."""
        for (name, labels), value in list(self._values.items()):
            gauge(name).set(value, dict(labels))

    def _report_run(self, report: RankReport, line: Record) -> None:
        self._set("workers", report.ranks, self._labels)
        for name in ("epoch", "loss", "triples_per_second"):
            self._set(name, line[name], self._labels)
        if line.get("valid"):
            self._set("validation_mrr", line["valid"]["mrr"], self._labels)
        self._add("steps_total", report.steps)
        self._add("triples_total", report.triples)

    def _report_pool(self, negatives: Record) -> None:
        for name, key in POOL_GAUGES.items():
            if negatives.get(key) is not None:
                self._set(name, negatives[key], self._labels)
        for reason in MISSED:
            self._add("pool_missed_queries_total", negatives.get(reason) or 0, reason=reason)

    def _set(self, name: str, value: float, labels: Labels) -> None:
        self._values[name, tuple(labels.items())] = value
        gauge(name).set(value, dict(labels))

    def _add(self, name: str, value: float, **labels: str) -> None:
        if value > 0:  # all that a counter accepts
            counter(name).inc(value, {**self._run, **labels})


@contextmanager
def exported(run: str, rank: int) -> Iterator[RunMetrics]:
    """Export the metrics of a rank while the context is open.

    Args:
        run: path or address of the run folder, as messages show it.
        rank: rank of this worker.
    """
    metrics, over = RunMetrics(run, rank), threading.Event()

    def repeat() -> None:
        while not over.wait(Config.metrics_report_interval_ms() / 2000):
            metrics.repeat()

    threading.Thread(target=repeat, name="metrics", daemon=True).start()
    try:
        yield metrics
    finally:
        over.set()


class Evaluations:
    """Observer that passes reports on to metrics, and the lines of validations to Ray Train."""

    def __init__(self, metrics: RunMetrics, ranks: Ranks, evaluated: Evaluated | None) -> None:
        """``evaluated`` is collective, and called at most once in ``EVALUATION_SECONDS`` by the clock of rank 0."""
        self._metrics, self._ranks, self._evaluated = metrics, ranks, evaluated
        self._last = -math.inf

    def report(self, report: RankReport) -> None:
        self._metrics.report(report)
        if self._evaluated is not None and report.line.get("valid") and self._due():
            self._last = time.monotonic()
            self._evaluated(report.line)

    def checkpoint(self, time: float) -> None:
        self._metrics.checkpoint(time)

    def _due(self) -> bool:
        """Return whether the last call was long enough ago; collective, because ranks that disagreed would wait."""
        due = torch.tensor([float(time.monotonic() - self._last >= EVALUATION_SECONDS)])
        return bool(self._ranks.broadcast(due))


def count_failure(run: str) -> None:
    """Count a lost or hung worker of a run folder, in the driver."""
    counter("worker_failures_total").inc(1, {"run": labels_of(run)["run"]})


@cache
def gauge(name: str) -> Gauge:
    """Return a gauge of ``GAUGES``."""
    description, labels = GAUGES[name]
    return Gauge(f"distkg_{name}", description, labels)


@cache
def counter(name: str) -> Counter:
    """Return a counter of ``COUNTERS``."""
    description, labels = COUNTERS[name]
    return Counter(f"distkg_{name}", description, labels)
