"""A run on two nodes that takes a fault every two minutes for half an hour, beside the same run without a fault.

ComplEx on two workers, on Ray's multi-node test cluster: two nodes on this machine. A quarter of the negatives come
from two actors that search near misses in published vectors. A seed draws the faults, all kinds before one comes again;
the next one comes when the run is whole again. A driver that ends is started again with ``--resume``, and a cluster
that has lost its head is started anew, as an operator would.

In a full run all epochs must be done at the end, and MRR of validation and test be within .01 of the undisturbed run.
Memory of all roles, object stores, and size and number of files in the run folder must be flat in both runs: in the
last quarter of the samples the median is at most 10 %, or 16 MB or 8 files, above that of the second quarter. Samples
at which workers or actors are missing are left out.

Row of a fault: the minute in which it came; seconds until the next step was reported; seconds until the run was whole
(all workers and actors at work, the fault ended, negatives delivered as before); steps that were reported and had to be
repeated; queries for which actors delivered no negatives; how often the driver was started again. Steps are reported
at the end of each epoch, so times are no more exact than an epoch.

The undisturbed run is kept in the folder, and done once.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import soak_requests
from benchmarks.common import BenchmarkError, Figures, Session, begin, finish, graph_settings, settings_of
from benchmarks.soak_cluster import TestCluster, alive
from benchmarks.soak_faults import FAULTS, Fault, drawn
from benchmarks.soak_watch import (
    ACTOR,
    COLUMNS,
    WORKER,
    Curves,
    Progress,
    Row,
    adopt_orphans,
    by_minute,
    growth,
    quarters,
    reap_orphans,
    titled,
)
from distkg.cluster.session.private_ray import environment_with
from distkg.config import RunConfig, parse_config
from distkg.data.store.graph_store import Store
from tests.faults.commands import ROOT, Command

WORKERS, ACTORS = 2, 2
LOOK_SECONDS = 0.1
LIMIT_SECONDS = 3600.0
"""Most that the undisturbed run takes; a disturbed one takes as long and the time of its faults."""

MINUTES = 30.0
"""How long faults are injected, by default."""

RECOVERY_SECONDS = 600.0
"""After which a run that is not whole again fails the soak."""

MARGIN_SECONDS = 0.5
"""After a fault, in which a line may still come that was written before."""

DELIVERED = 0.9
"""Of the share of negatives delivered before a fault, what must be delivered again after it."""

GROWTH, ALLOWED_MB, ALLOWED_FILES = 1.1, 16.0, 8.0
MRR_DIFFERENCE = 0.01
QUICK_FAULTS = ("worker killed", "actor killed in a draw")


@dataclass(frozen=True)
class Work:
    """Sizes of the run, and seconds from sample to sample."""

    epochs: int
    dim: int = 128
    negatives: int = 64
    neighbours: int = 128
    batch_size: int = 512
    hung_after: float = 20.0
    sample_seconds: float = 5.0


def configured(store: Path, work: Work) -> RunConfig:
    """Return the configuration of both runs."""
    near_misses = {"source": soak_requests.NAME, "options": {"neighbours": work.neighbours}}
    pool = {"actors": ACTORS, "placement": "spread", "fallback": "uniform", "hung_after": work.hung_after}
    return parse_config(
        {
            "data": {"store": str(store)},
            "model": {"name": "complex", "dim": work.dim},
            "objective": {"name": "sampled_softmax"},
            "regularizer": {"name": "n3", "weight": 0.01},
            "negatives": {
                "source": "mixture",  # in which a share that is not delivered changes little of what is learned
                "options": {"parts": [{"source": "uniform", "weight": 3}, near_misses]},
                "count": work.negatives,
                "filter": True,
                "pool": pool,
            },
            "optimizer": {"name": "adam", "learning_rate": 0.002, "schedule": "linear"},
            "train": {"workers": WORKERS, "epochs": work.epochs, "batch_size": work.batch_size},
            "evaluate": {"every": 20},
            "checkpoint": {"every": 5},
            "cluster": {"max_failures": 1000, "hung_after": work.hung_after},
        },
        "this benchmark",
    )


class Run:
    """Run on a test cluster, with its driver, its progress and its curves.

    Attributes:
        cluster, driver, store, requests, rng: as in `soak_faults.Victim`.
        progress: lines that it has reported.
        starts: how often the driver was started.
    """

    def __init__(self, folder: Path, name: str, store: Path, work: Work, seed: int = 0) -> None:
        self.folder, self.store, self.requests = folder / name, store, folder / "requests"
        self.rng, self.starts = np.random.default_rng(seed), 0
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._config = self.folder / "config.yaml"
        self._config.write_text(configured(store, work).to_yaml())
        self.run = self.folder / "run"
        self.progress = Progress(self.run)
        self.cluster = TestCluster.started()
        self.command = self._started()
        self._curves = Curves(
            self.run, work.sample_seconds, (WORKERS, ACTORS), lambda: self.driver, lambda: self.stored
        )
        self.stored: object = None
        self._asked = 0.0
        self._curves.start()

    @property
    def driver(self) -> int:
        return self.command.process.pid

    @property
    def rows(self) -> list[Row]:
        return self._curves.rows

    def _started(self) -> Command:
        self.starts += 1
        settings = ("--set", f"cluster.address={self.cluster.address}")
        arguments = ("train", self._config, "--run", self.run, "--resume", *settings)
        return Command(self.folder, *arguments, paths=[self.folder.parent / "path"])

    def resume(self) -> None:
        """Start the driver again, on a new cluster if this one has lost its head."""
        with suppress(BenchmarkError):
            if len(alive(self.cluster.head())) == 2:
                self.command = self._started()
                return
        self.cluster.end()
        self.cluster = TestCluster.started()
        self.command = self._started()

    def look(self) -> None:
        """Read new lines of metrics, and ask the object stores now and then."""
        self.progress.look()
        reap_orphans({self.driver})
        if time.monotonic() - self._asked > 5.0:
            self._asked = time.monotonic()
            with suppress(BenchmarkError):
                self.stored = self.cluster.stored()

    def is_whole(self) -> bool:
        """Return whether all workers and actors run."""
        found = [*titled(WORKER), *titled(ACTOR)]
        return len(found) == WORKERS + ACTORS and not any(_is_stopped(process) for process in found)

    def code(self) -> int | None:
        """Return the exit code of the driver; None while it runs."""
        return self.command.process.poll()

    def end(self) -> None:
        """End the driver and the cluster."""
        self._curves.stop()
        with suppress(psutil.NoSuchProcess):
            self.command.process.kill()
        self.command.process.wait()
        self.cluster.end()

    def last_line(self) -> str:
        """Return the last line of the driver's own, without machine paths."""
        own = [line for line in self.command.output.splitlines() if line.startswith(("error:", "stopped by"))]
        return own[-1].replace(f"{ROOT}/", "") if own else "it said nothing"

    def last_lines(self) -> str:
        return "\n".join(self.command.output.splitlines()[-30:])


def _is_stopped(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_STOPPED)
    return True


@contextmanager
def running(folder: Path, name: str, store: Path, work: Work, seed: int = 0) -> Iterator[Run]:
    """Start a run, and end it whatever happens."""
    run = Run(folder, name, store, work, seed)
    try:
        yield run
    finally:
        run.end()


@dataclass
class Injected:
    """Fault that was injected, and what was seen of it.

    Attributes:
        name: of the fault.
        at, healed: when it began, and when it was ended (``time.monotonic``).
        reports, repeated, starts, delivered, restarts: when it began, lines, repeated steps, starts of the driver,
            delivered share, and restarts of actors.
        processes: workers and actors when it began.
        heal: what ends it; None once it has ended.
        gone: when the processes that must end had ended; None before.
    """

    name: str
    at: float
    reports: int
    repeated: int
    starts: int
    delivered: float
    restarts: int
    processes: list[psutil.Process]
    heal: Callable[[], None] | None
    healed: float
    gone: float | None = None

    @property
    def fault(self) -> Fault:
        return FAULTS[self.name]

    def look(self, run: Run) -> None:
        """Note when the processes that must end have ended, and end the fault when its time has come."""
        if self.gone is None and self._have_gone(run):
            self.gone = time.monotonic()
        has_worked = not self.fault.ends_driver or run.code() is not None
        if self.heal is not None and has_worked and time.monotonic() - self.at >= self.fault.seconds:
            self.heal()
            self.heal, self.healed = None, time.monotonic()

    def _have_gone(self, run: Run) -> bool:
        left = len(alive(self.processes))
        if self.fault.ends_driver:
            return left == 0 and run.starts > self.starts
        return not self.fault.replaces or left < len(self.processes)

    def seconds_whole(self, run: Run) -> float | None:
        """Return the seconds until the run was whole again; None if it is not."""
        if self.heal is not None or self.gone is None or not run.is_whole():
            return None
        for report in reversed(run.progress.reports[self.reports :]):
            if report.at <= max(self.healed + MARGIN_SECONDS, self._interrupted):
                return None
            enough = report.delivered is not None and report.delivered >= DELIVERED * self.delivered
            restarted = report.restarts > self.restarts or run.starts > self.starts
            if enough and (self.fault.replaces != ACTOR or restarted):
                return report.at - self.at
        return None

    @property
    def _interrupted(self) -> float:
        """Time until which a line may be of the workers that the fault has ended."""
        if self.fault.ends_driver or self.fault.replaces == WORKER:
            return max(self.at + MARGIN_SECONDS, self.gone or 0.0)
        return self.at + MARGIN_SECONDS

    def figures(self, run: Run, minute: float, whole: float) -> Row:
        later = run.progress.reports[self.reports :]
        return {
            "minute": minute,
            "next step s": next(report.at for report in later if report.at > self._interrupted) - self.at,
            "whole s": whole,
            "steps repeated": float(run.progress.repeated - self.repeated),
            "queries without negatives": float(sum(report.missed for report in later)),
            "driver started": float(run.starts - self.starts),
        }


def inject(run: Run, name: str) -> Injected:
    """Inject a fault into a run that is whole."""
    latest = run.progress.reports[-20:]
    delivered = statistics.median(report.delivered for report in latest if report.delivered is not None)
    before = len(run.progress.reports), run.progress.repeated, run.starts, delivered, latest[-1].restarts
    processes = [*titled(WORKER), *titled(ACTOR)]
    heal = FAULTS[name].inject(run)
    now = time.monotonic()
    return Injected(name, now, *before, processes, heal, now)


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        figures: MRR of both splits, epochs, and minutes from the first steps to the end.
        rows: samples of memory and sizes.
        faults: names and figures, in their order.
        surprises: what must not happen.
    """

    figures: Row
    rows: list[Row]
    faults: list[tuple[str, Row]]
    surprises: list[str]


def follow(run: Run, faults: Iterator[str], seconds: float, every: float, limit: float) -> Outcome:
    """Let a run come to its end, with a fault every ``every`` seconds of the first ``seconds``.

    Raises:
        BenchmarkError: it was not whole again after a fault, or has not ended in ``limit`` seconds.
    """
    started = time.monotonic()
    due, under_way = float("inf"), None
    done: list[tuple[str, Row]] = []
    surprises: list[str] = []
    while True:
        now = time.monotonic()
        run.look()
        code = run.code()
        if code == 0:
            break
        if under_way is not None:
            under_way.look(run)
        if code is not None and (under_way is None or under_way.heal is None):
            if under_way is None or not under_way.fault.ends_driver:
                fault = under_way.name if under_way is not None else "no fault"
                surprises.append(f"the driver ended with {code} ({fault}): {run.last_line()}")
            run.resume()
        if under_way is not None:
            if (whole := under_way.seconds_whole(run)) is not None:
                row = under_way.figures(run, (under_way.at - started) / 60, whole)
                done.append((under_way.name, row))
                print(f"{under_way.name}: {', '.join(f'{key} {value:.4g}' for key, value in row.items())}", flush=True)
                under_way = None
            elif now - under_way.at > RECOVERY_SECONDS:
                raise BenchmarkError(f"not whole again after {under_way.name}:\n{run.last_lines()}")
        elif now >= due and now - started < seconds + every and run.is_whole():
            due = max(due + every, now + every / 2)
            under_way = inject(run, next(faults))
        elif due == float("inf") and len(run.progress.reports) > 5:
            started, due = now, now + every
        if now - started > limit:
            raise BenchmarkError(f"has not ended after {limit / 60:.0f} minutes:\n{run.last_lines()}")
        time.sleep(LOOK_SECONDS)
    if under_way is not None and under_way.heal is not None:
        under_way.heal()
    result = json.loads((run.run / "result.json").read_text())
    if left := wait_until_gone([*titled(WORKER), *titled(ACTOR)]):
        surprises.append(f"processes outlive the run: {left}")
    mrr = {f"{split} MRR": result["metrics"][split]["mrr"] for split in ("valid", "test")}
    outcome = {"epochs": result["train"]["epochs"], "minutes": (time.monotonic() - started) / 60, **mrr}
    return Outcome(outcome, run.rows, done, surprises)


def wait_until_gone(processes: Sequence[psutil.Process], seconds: float = 30.0) -> list[str]:
    """Return the titles of processes that are alive after ``seconds``."""
    _, left = psutil.wait_procs(processes, seconds)
    return [" ".join(process.cmdline()) for process in alive(left)]


def undisturbed(work: Work, store: Path, folder: Path) -> Outcome:
    """Return the outcome of the run without faults; kept in the folder."""
    kept = folder / "undisturbed.json"
    config = configured(Path("store"), work).to_yaml()
    if kept.exists() and (content := json.loads(kept.read_text())).pop("config") == config:
        return Outcome(**content)
    with running(folder, "undisturbed", store, work) as run:
        outcome = follow(run, iter(()), 0.0, 0.0, LIMIT_SECONDS)
    part = kept.with_suffix(".part")
    part.write_text(json.dumps({**asdict(outcome), "config": config}))
    os.replace(part, kept)
    return outcome


def problems(calm: Outcome, disturbed: Outcome, work: Work) -> list[str]:
    """Return what the soak found wrong."""
    found = [*calm.surprises, *disturbed.surprises]
    for name, outcome in (("undisturbed", calm), ("disturbed", disturbed)):
        if outcome.figures["epochs"] != work.epochs:
            found.append(f"{name}: {outcome.figures['epochs']:g} epochs of {work.epochs}")
        found += [f"{name}: {column} is not flat" for column in COLUMNS if not is_flat(outcome.rows, column)]
    for split in ("valid MRR", "test MRR"):
        if abs(calm.figures[split] - disturbed.figures[split]) > MRR_DIFFERENCE:
            found.append(f"{split} differs: {calm.figures[split]:.4f} and {disturbed.figures[split]:.4f}")
    return found


def is_flat(rows: Sequence[Row], column: str) -> bool:
    """Return whether a column is no larger in the last quarter than the docstring of the module allows."""
    second, last = quarters(rows, column)
    return last <= max(GROWTH * second, second + (ALLOWED_FILES if column == "files" else ALLOWED_MB))


def main(arguments: Sequence[str] | None = None) -> Path:
    """Both runs, the undisturbed one last.

    Raises:
        BenchmarkError: the soak found something wrong; the result file is written first.
    """
    needs = ("store", "folder", "epochs", "minutes", "every", "seed", "note")
    session = begin(__file__, str(__doc__), arguments, *needs, repetitions=1)
    options, folder = session.options, Path(session.options.folder).absolute()
    options.minutes = MINUTES if options.minutes is None else options.minutes
    work = Work(options.epochs)
    if session.quick:
        work = Work(options.epochs, dim=16, negatives=4, neighbours=8, hung_after=10.0, sample_seconds=1.0)
    store = prepared(session, folder)
    with as_parent(folder):
        names = QUICK_FAULTS if session.quick else tuple(FAULTS)
        with running(folder, "disturbed", store, work, options.seed) as run:
            limit = LIMIT_SECONDS + 60 * options.minutes
            disturbed = follow(run, drawn(run.rng, names), 60 * options.minutes, options.every, limit)
        calm = undisturbed(work, store, folder)
    found = [] if session.quick else problems(calm, disturbed, work)
    path = finish(session, settings_of(work, **settings(session, found)), figures(calm, disturbed))
    if found:
        raise BenchmarkError("the soak found:\n" + "\n".join(found))
    return path


def prepared(session: Session, folder: Path) -> Path:
    """Return a copy of the store in the folder, which a fault may hide."""
    store = folder / "store"
    if not store.exists():
        shutil.copytree(session.store, store)
    return store


@contextmanager
def as_parent(folder: Path) -> Iterator[None]:
    """Have orphans adopted, and everything that is started find the source of the soak and the folder of requests."""
    requests, path = folder / "requests", folder / "path"
    for stale in (requests, path):
        shutil.rmtree(stale, ignore_errors=True)
    requests.mkdir()
    soak_requests.install(path)
    adopt_orphans()
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell starts what is in the background with SIGINT ignored
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    sys.path.append(str(path))
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as sessions,
        environment_with(
            {
                soak_requests.FOLDER: str(requests),
                "PYTHONPATH": os.pathsep.join((str(ROOT), str(path))),
                "RAY_TMPDIR": sessions,
                "RAY_worker_niceness": "0",
                "RAY_USAGE_STATS_ENABLED": "0",
            }
        ),
    ):
        try:
            yield
        finally:
            for process in alive(psutil.Process().children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            sys.path.remove(str(path))


def settings(session: Session, found: Sequence[str]) -> dict[str, Any]:
    """Return the settings of the result file."""
    options = session.options
    return {
        "workers": WORKERS,
        "actors": ACTORS,
        "nodes": 2,
        "minutes": options.minutes,
        "every s": options.every,
        "seed": options.seed,
        "note": options.note,
        "graph": graph_settings(Store.open(session.store)),
        "found": list(found),
    }


def figures(calm: Outcome, disturbed: Outcome) -> Figures:
    """Return rows of both runs, of the faults, of growth, and of every minute."""
    table = Figures()
    for name, outcome in (("undisturbed", calm), ("disturbed", disturbed)):
        table.add(name, outcome.figures)
        table.add(f"{name}, last quarter / second", {column: growth(outcome.rows, column) for column in COLUMNS})
    for number, (name, row) in enumerate(disturbed.faults, 1):
        table.add(f"{number}: {name}", row)
    for name, outcome in (("undisturbed", calm), ("disturbed", disturbed)):
        for minute, row in by_minute(outcome.rows).items():
            table.add(f"{name}, minute {minute}", row)
    return table


if __name__ == "__main__":
    main()
