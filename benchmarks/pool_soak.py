"""Whether anything grows while an actor draws negatives for a long time: memory and deliveries by the minute.

Two Ray Train workers, one actor, a small model, near misses. Every minute is one row: resident memory of the workers
and of the actor, bytes in Ray's object store, steps done and the share delivered. `growth` is the slope of a line
through the last three quarters of the minutes.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from benchmarks.common import Figures, begin, finish, graph_settings
from benchmarks.negative_pool import pool_config
from distkg.cluster.launch import launch_training
from distkg.data.store.graph_store import Store

ROW_SECONDS = 60.0
WORKER, ACTOR = "ray::RayTrainWorker", "ray::NegativeActor"


class Watch(threading.Thread):
    """Looks at processes and at the object store every ``seconds`` until it is stopped.

    Attributes:
        rows: what was seen, oldest first.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(daemon=True)
        self.rows: list[dict[str, float]] = []
        self._seconds, self._ended, self._latest = seconds, threading.Event(), {"step": 0.0, "delivered": 0.0}

    def hear(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        share = record["negatives"]["delivered"]  # None where nothing was due
        self._latest = {"step": record["step"], "delivered": self._latest["delivered"] if share is None else share}

    def run(self) -> None:
        started = time.monotonic()
        while not self._ended.wait(self._seconds):
            if not ray.is_initialized():
                continue
            seen = {"workers MB": resident_mb(WORKER), "actor MB": resident_mb(ACTOR), "object store MB": stored_mb()}
            self.rows.append({"minutes": (time.monotonic() - started) / 60, **seen, **self._latest})

    def stop(self) -> None:
        self._ended.set()
        self.join()


def resident_mb(title: str) -> float:
    """Of all processes started from here whose title begins so."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if (process.cmdline() or [""])[0].startswith(title):
                total += process.memory_info().rss
    return total / 1e6


def stored_mb() -> float:
    """Bytes that objects take in Ray's store, as Ray counts them."""
    from ray._private.internal_api import memory_summary  # the state API would need a dashboard

    summary = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    found = re.search(r"Plasma memory usage (\d+) MiB", summary)
    return float(found.group(1)) * 1.048576 if found else float("nan")


def growth(rows: Sequence[dict[str, float]], column: str) -> float:
    """Per hour, by a line through the last three quarters of the rows."""
    settled = rows[len(rows) // 4 :]
    if len(settled) < 2:
        return 0.0
    slope, _ = np.polyfit([row["minutes"] for row in settled], [row[column] for row in settled], 1)
    return float(60 * slope)


def main(arguments: Sequence[str] | None = None) -> Path:
    """One run of ``--seconds``."""
    session = begin(__file__, str(__doc__), arguments, "store", "preset", "seconds", repetitions=1)
    typed = session.options
    config = pool_config(typed.preset, session.store, typed.seconds, "near_miss", "by an actor", quick=session.quick)
    config.train.workers = 2
    watch = Watch(1.0 if session.quick else ROW_SECONDS)
    watch.start()
    with tempfile.TemporaryDirectory() as folder:
        launch_training(config, Path(folder) / "run", listener=watch.hear)
    watch.stop()
    rows, figures = [row for row in watch.rows if row["actor MB"] > 0], Figures()
    for row in rows:
        figures.add(f"minute {row['minutes']:.0f}", row)
    for column in ("workers MB", "actor MB", "object store MB"):
        figures.add("growth per hour", {column: growth(rows, column)})
    settings = {"preset": typed.preset, "seconds": typed.seconds, "graph": graph_settings(Store.open(session.store))}
    return finish(session, settings, figures)


if __name__ == "__main__":
    main()
