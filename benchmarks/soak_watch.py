"""Observation of a run on Ray from outside: reported steps, and memory, object stores and files by time."""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.peak_memory import proportional_mb
from benchmarks.soak_cluster import Stored, alive

WORKER, ACTOR = "ray::RayTrainWorker", "ray::NegativeActor"
ROLES = ("driver", "workers", "actors", "raylets", "GCS", "other")
MISSED = ("late", "old", "broken", "refused", "failed", "lost")

COLUMNS = (*(f"{role} MB" for role in ROLES), "object store MB", "run folder MB", "files")

Row = dict[str, float]


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose parent dies, so that none goes unseen (Linux)."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def reap_orphans(own: set[int]) -> None:
    """Remove adopted children that have died from the table of processes, but not those of ``own``."""
    for child in psutil.Process().children():
        with suppress(psutil.Error, ChildProcessError):
            if child.pid not in own and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


def titled(title: str) -> list[psutil.Process]:
    """Return the live processes started from here whose title begins so, in order of their ids."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "".join(process.cmdline()[:1]).startswith(title):
                found.append(process)
    return sorted(alive(found), key=lambda process: process.pid)


@dataclass(frozen=True)
class Report:
    """Line of metrics.jsonl.

    Attributes:
        at: when it was seen (``time.monotonic``).
        step: steps that are done.
        delivered: share of the negatives that actors delivered; None if none was due.
        missed: queries for which they delivered none.
        restarts: restarts of actors that the group of workers has seen.
    """

    at: float
    step: int
    delivered: float | None
    missed: int
    restarts: int


class Progress:
    """Lines of a run's metrics.jsonl in the order in which they arrive, those of repeated steps included.

    Attributes:
        reports: all lines so far.
        furthest: largest step of a line.
        repeated: steps that were reported, and done again after a restart from a checkpoint.
    """

    def __init__(self, run: Path) -> None:
        self.reports: list[Report] = []
        self.furthest = self.repeated = 0
        self._file, self._lines, self._stamp = run / "metrics.jsonl", list[bytes](), (-1, -1)

    def look(self) -> None:
        """Read new lines."""
        try:
            status = self._file.stat()
            if (stamp := (status.st_size, status.st_mtime_ns)) == self._stamp:
                return
            lines = self._file.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return
        shared = next((i for i, (a, b) in enumerate(zip(self._lines, lines, strict=False)) if a != b), None)
        shared = min(len(self._lines), len(lines)) if shared is None else shared
        if shared < len(self._lines):
            kept = json.loads(lines[shared - 1])["step"] if shared else 0
            self.repeated += self.furthest - kept
            self.furthest = kept
        self.reports += [self._report(line) for line in lines[shared:]]
        self._lines, self._stamp = lines, stamp

    def _report(self, line: bytes) -> Report:
        record = json.loads(line)
        self.furthest = max(self.furthest, record["step"])
        came = record.get("negatives", {})
        missed = sum(came.get(reason) or 0 for reason in MISSED)
        return Report(time.monotonic(), record["step"], came.get("delivered"), missed, came.get("restarts") or 0)


class Curves(threading.Thread):
    """Samples of memory and sizes every ``seconds``, until it is stopped.

    Attributes:
        rows: samples, oldest first; ``complete`` is 1 where all workers and actors were there.
    """

    def __init__(
        self, run: Path, seconds: float, full: tuple[int, int], driver: Callable[[], int], stored: Callable[[], object]
    ) -> None:
        """
        Args:
            run: folder whose files are counted.
            seconds: from sample to sample.
            full: number of workers and of actors of the undisturbed run.
            driver: process id of the driver.
            stored: ``Stored`` of the cluster, or None.
        """
        super().__init__(daemon=True, name="curves")
        self.rows: list[Row] = []
        self._run, self._seconds, self._full, self._driver, self._stored = run, seconds, full, driver, stored
        self._over = threading.Event()

    def run(self) -> None:
        started = time.monotonic()
        while not self._over.wait(self._seconds):
            self.rows.append({"minute": (time.monotonic() - started) / 60, **self._sample()})

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _sample(self) -> Row:
        memory, count = dict.fromkeys(ROLES, 0.0), dict.fromkeys(ROLES, 0)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error, OSError):
                role = _role(process, self._driver())
                memory[role] += proportional_mb(process.pid)
                count[role] += 1
        row = {f"{role} MB": value for role, value in memory.items()}
        stored = self._stored()
        if isinstance(stored, Stored):
            row |= {"object store MB": stored.used / 1e6}
        files = [path for path in self._run.rglob("*") if path.is_file()]
        row |= {"run folder MB": sum(_size(path) for path in files) / 1e6, "files": float(len(files))}
        row |= {"load": os.getloadavg()[0]}
        return {**row, "complete": float((count["workers"], count["actors"]) == self._full)}


def _role(process: psutil.Process, driver: int) -> str:
    title, name = "".join(process.cmdline()[:1]), process.name()
    if process.pid == driver:
        return "driver"
    if title.startswith(WORKER):
        return "workers"
    if title.startswith(ACTOR):
        return "actors"
    return {"raylet": "raylets", "gcs_server": "GCS"}.get(name, "other")


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def quarters(rows: Sequence[Row], column: str) -> tuple[float, float]:
    """Return the median of a column in the second quarter of the complete samples, and in the last."""
    values = [row[column] for row in rows if row["complete"] and column in row]
    quarter = len(values) // 4
    if not quarter:
        return 0.0, 0.0
    return statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])


def growth(rows: Sequence[Row], column: str) -> float:
    """Return the median of a column in the last quarter, by that in the second; 1 if there are no samples."""
    second, last = quarters(rows, column)
    return last / second if second else 1.0


def by_minute(rows: Sequence[Row]) -> dict[int, Row]:
    """Return the median of every column in each minute."""
    minutes = sorted({int(row["minute"]) for row in rows})
    table = {}
    for minute in minutes:
        own = [row for row in rows if int(row["minute"]) == minute]
        columns = dict.fromkeys(column for row in own for column in row if column not in ("minute", "complete"))
        table[minute] = {column: statistics.median(row[column] for row in own if column in row) for column in columns}
    return table
