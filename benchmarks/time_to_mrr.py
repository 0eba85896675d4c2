"""Minutes until a validation MRR: distkg's preset, plain PyTorch and PyKEEN in turn on the same two cores.

Each contender trains in a process of its own, with the settings that reached the targets soonest of those that were
tried (docs/performance.md names the others), until it has passed the best target or its time is over. The whole
validation split is ranked exactly at intervals. Minutes are those since the command was started, with imports, start-up
and compilation. distkg is `distkg train` as a user runs it, and its minutes include its validations and checkpoints.
Peers are validated by a ranking in plain PyTorch, which is faster than PyKEEN's, and their minutes do not include that.
Training seconds are without start-up and without validation for all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import IO, Any, Protocol

from benchmarks.common import BenchmarkError, Figures, Session, begin, finish, graph_settings, rows_wanted
from benchmarks.peers import write_graph
from benchmarks.svg import decimal
from distkg.data.store.graph_store import Store

ROOT = Path(__file__).resolve().parent.parent
CORES = 2
LOOK_SECONDS = 0.1
STOP_SECONDS = 120.0

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """A validation: minutes since the command, seconds of training alone, and the MRR."""

    minutes: float
    training_seconds: float
    mrr: float


@dataclass(frozen=True)
class Run:
    """One training of a contender: its store, its folder with the triples in ``graph.npz`` for peers, its seed, and the
    least seconds of a peer's training between validations."""

    store: str
    folder: Path
    seed: int
    interval: float


class Contender(Protocol):
    """A way to train on a graph."""

    def command(self, run: Run) -> list[str]:
        """Return the arguments of Python."""
        ...

    def environment(self) -> dict[str, str]:
        """Return the environment of the process."""
        ...

    def records(self, run: Run) -> Path:
        """Return the file to which the process appends a JSON line for each validation."""
        ...

    def point(self, seconds: float, records: Sequence[Record]) -> Point | None:
        """Return the validation of the last of the records so far, if it has one, ``seconds`` after the command."""
        ...

    def small(self) -> Contender:
        """Return the same in a few dimensions."""
        ...


@dataclass(frozen=True)
class Distkg:
    """`distkg train` with a preset that validates after each epoch.

    Attributes:
        preset: name of the preset.
        changes: `--set` arguments beside the store and the interval of validations.
    """

    preset: str
    changes: Sequence[str] = ()

    def command(self, run: Run) -> list[str]:
        sets = [f"data.store={run.store}", f"train.seed={run.seed}", "evaluate.every=1", *self.changes]
        typed = [word for change in sets for word in ("--set", change)]
        return ["-m", "distkg", "train", f"preset:{self.preset}", "--run", str(run.folder / "run"), *typed]

    def environment(self) -> dict[str, str]:
        """As a user's shell has it: distkg chooses the threads of its workers, and starts a Ray of its own."""
        return {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "RAY_"))}

    def records(self, run: Run) -> Path:
        return run.folder / "run" / "metrics.jsonl"

    def point(self, seconds: float, records: Sequence[Record]) -> Point | None:
        if "valid" not in records[-1]:
            return None
        training = sum(sum(record["seconds"].values()) for record in records)
        return Point(seconds / 60, training, records[-1]["valid"]["mrr"])

    def small(self) -> Contender:
        return Distkg(self.preset, (*self.changes, "model.dim=8"))


@dataclass(frozen=True)
class Peer:
    """A program of `benchmarks` that trains with a peer's code, with a thread for each core.

    Attributes:
        program: ``plain_complex`` or ``pykeen_complex``.
        setting: fields of its ``Setting``.
    """

    program: str
    setting: Mapping[str, Any]

    def command(self, run: Run) -> list[str]:
        given = [str(run.folder / "graph.npz"), str(self.records(run)), str(CORES), str(run.interval), str(run.seed)]
        return ["-m", f"benchmarks.{self.program}", *given, json.dumps(self.setting)]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": str(CORES), "OMP_WAIT_POLICY": "passive"}

    def records(self, run: Run) -> Path:
        return run.folder / "validations.jsonl"

    def point(self, seconds: float, records: Sequence[Record]) -> Point | None:
        last = records[-1]
        return Point((seconds - last["validation_seconds"]) / 60, last["training_seconds"], last["mrr"])

    def small(self) -> Contender:
        return Peer(self.program, {**self.setting, "dim": 8})


@dataclass(frozen=True)
class Graph:
    """A graph, its targets and its contenders.

    Attributes:
        targets: validation MRRs, ascending; the last ends a contender's run.
        minutes: time limit of each contender.
        interval: least seconds of a peer's training between two validations.
        contenders: by the name of their row.
        others: settings that came later in trials, or were not tried; run by ``--variants``.
    """

    targets: Sequence[float]
    minutes: float
    interval: float
    contenders: Mapping[str, Contender]
    others: Mapping[str, Contender]

    def rows(self, session: Session) -> list[str]:
        """Return the contenders, or the rows that ``--variants`` names."""
        return rows_wanted(session, {**self.contenders, **self.others} if session.options.variants else self.contenders)

    def row(self, name: str) -> Contender:
        return self.contenders[name] if name in self.contenders else self.others[name]


def plain(dim: int, batch_size: int, learning_rate: float, n3: float, **more: Any) -> Contender:
    """Return ComplEx in plain PyTorch."""
    setting = {"dim": dim, "batch_size": batch_size, "learning_rate": learning_rate, "n3": n3, **more}
    return Peer("plain_complex", setting)


def pykeen(loop: str, dim: int, batch_size: int, learning_rate: float, **more: Any) -> Contender:
    """Return ComplEx in PyKEEN, with Adagrad and small initial vectors unless ``more`` says otherwise."""
    shared = {"loop": loop, "optimizer": "Adagrad", "initial_scale": 1e-3}
    setting = {**shared, "dim": dim, "batch_size": batch_size, "learning_rate": learning_rate, **more}
    return Peer("pykeen_complex", setting)


def sampled(learning_rate: float, n3: float, negatives: int, epochs: int, *more: str) -> Contender:
    """Return ComplEx in distkg by cross entropy among shared negatives; the rate falls linearly over the epochs."""
    changes = [
        "model.dim=256",
        "train.batch_size=512",
        f"train.epochs={epochs}",
        "train.time_limit_seconds=300",
        "optimizer.name=adagrad",
        f"optimizer.learning_rate={learning_rate}",
        f"regularizer.weight={n3}",
        "negatives.shared=true",
        "negatives.filter=false",
        f"negatives.count={negatives}",
    ]
    return Distkg("negatives_complex", (*ONE_WORKER, *changes, *more))


ONE_WORKER = ("train.workers=1", "cluster.cpus_per_worker=2")
"""A process with a thread for each core, which starts without Ray."""

WHOLE_SPLIT = "evaluate.max_valid_triples=null"

GRAPHS: dict[str, Graph] = {
    "codex_s": Graph(
        (0.35, 0.40, 0.44, 0.46),
        minutes=2.0,
        interval=1.0,
        contenders={
            "distkg": Distkg("complex_codex_s", ONE_WORKER),
            "plain PyTorch": plain(512, 256, 0.1, 0.01, grouped=True),
            "PyKEEN": pykeen("lcwa", 512, 256, 0.1, n3=0.01, by_answers=True),
        },
        others={
            "distkg, two workers": Distkg("complex_codex_s"),
            "distkg, HaLE": Distkg("hale_codex_s", ("train.time_limit_seconds=90",)),
            "plain PyTorch, single queries": plain(512, 512, 0.1, 0.01),
            "PyKEEN, queries weigh the same": pykeen("lcwa", 512, 256, 0.1, n3=0.01),
            "PyKEEN, queries weigh the same, no N3": pykeen("lcwa", 512, 256, 0.1),
            "PyKEEN, queries weigh the same, dim 256": pykeen("lcwa", 256, 256, 0.1, n3=0.1),
            "PyKEEN, binary cross entropy": pykeen("lcwa", 512, 256, 0.1, loss="bcewithlogits"),
            "PyKEEN, sLCWA": pykeen(
                "slcwa", 128, 1024, 0.01, optimizer="Adam", loss="softplus", initial_scale=1.0, negatives=16
            ),
        },
    ),
    "wn18rr": Graph(
        (0.40, 0.45, 0.47),
        minutes=4.0,
        interval=2.0,
        contenders={
            "distkg": Distkg("complex_wn18rr", ONE_WORKER),
            "distkg, sampled": sampled(0.3, 0.1, 512, 40, "evaluate.every=2"),
            "plain PyTorch": plain(256, 1024, 0.1, 0.1, negatives=512, epochs=40),
            "PyKEEN": pykeen("slcwa", 256, 512, 0.1, initial_scale=0.1, negatives=64),
        },
        others={
            "distkg, two workers": Distkg("complex_wn18rr"),
            "distkg, HaLE": Distkg("hale_wn18rr", ("train.time_limit_seconds=180",)),
            "plain PyTorch, constant rate": plain(256, 1024, 0.3, 0.1, negatives=512),
            "plain PyTorch, constant rate .1": plain(256, 1024, 0.1, 0.1, negatives=512),
            "plain PyTorch, rate .3, 15 epochs": plain(256, 1024, 0.3, 0.1, negatives=512, epochs=15),
            "plain PyTorch, all entities": plain(256, 512, 0.5, 0.1, grouped=True),
            "plain PyTorch, all entities, dim 128": plain(128, 256, 0.5, 0.1, grouped=True),
            "PyKEEN, LCWA": pykeen("lcwa", 256, 256, 0.5),
        },
    ),
    "fb15k237": Graph(
        (0.25, 0.30, 0.33),
        minutes=4.0,
        interval=2.0,
        contenders={
            "distkg": Distkg("complex_fb15k237", (*ONE_WORKER, WHOLE_SPLIT)),
            "distkg, sampled": sampled(0.1, 0.05, 1024, 8),
            "plain PyTorch": plain(256, 1024, 0.1, 0.05, negatives=1024, epochs=6),
            "PyKEEN": pykeen("lcwa", 256, 256, 0.1, n3=0.05, by_answers=True),
        },
        others={
            "distkg, two workers": Distkg("complex_fb15k237", (WHOLE_SPLIT,)),
            "distkg, HaLE": Distkg("hale_fb15k237", ("train.time_limit_seconds=180",)),
            "plain PyTorch, constant rate": plain(256, 1024, 0.1, 0.05, negatives=1024),
            "plain PyTorch, all entities": plain(512, 512, 0.1, 0.05, grouped=True),
            "plain PyTorch, all entities, dim 256": plain(256, 256, 0.1, 0.05, grouped=True),
            "plain PyTorch, all entities, dim 128": plain(128, 256, 0.1, 0.05, grouped=True),
            "PyKEEN, queries weigh the same": pykeen("lcwa", 256, 256, 0.1),
            "PyKEEN, sLCWA": pykeen("slcwa", 256, 1024, 0.1, initial_scale=0.1, negatives=64),
        },
    ),
}
"""By the name of the store's folder, as the presets name it."""

QUICK = Graph(
    (0.001,),
    minutes=1.0,
    interval=0.1,
    contenders={row: contender.small() for row, contender in GRAPHS["codex_s"].contenders.items()},
    others={},
)


def graph_of(store: Path) -> Graph:
    """Return the graph of a store.

    Raises:
        BenchmarkError: its folder has another name than the presets give it.
    """
    if store.name not in GRAPHS:
        raise BenchmarkError(f"{store}: no contenders are set for it. Name the store's folder {' or '.join(GRAPHS)}")
    return GRAPHS[store.name]


def validations(contender: Contender, run: Run, limit: float, target: float) -> list[Point]:
    """Train until a validation has ``target``, or ``limit`` minutes are over; return all validations.

    Raises:
        BenchmarkError: the process failed; the message ends with what it printed last.
    """
    points: list[Point] = []
    started, seen, uncounted = time.monotonic(), 0, 0.0
    with (run.folder / "output").open("w") as output, _started(contender, run, output) as process:
        while True:
            ended = process.poll()
            seconds, records = time.monotonic() - started, _records(contender.records(run))
            for count in range(seen + 1, len(records) + 1):
                point = contender.point(seconds, records[:count])
                if point is not None:
                    points.append(point)
                    uncounted = seconds - 60 * point.minutes
            seen = len(records)
            if ended is not None or seconds - uncounted >= 60 * limit or (points and points[-1].mrr >= target):
                break
            time.sleep(LOOK_SECONDS)
    if ended:
        printed = (run.folder / "output").read_text()[-2000:]
        raise BenchmarkError(f"{' '.join(contender.command(run))} ended with exit code {ended}:\n{printed}")
    return points


@contextmanager
def _started(contender: Contender, run: Run, output: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a contender on the first ``CORES`` cores that this process may use; ends it."""
    cores = os.sched_getaffinity(0)
    if len(cores) < CORES:
        raise BenchmarkError(f"contenders have {CORES} cores each; this process may use {len(cores)}")
    os.sched_setaffinity(0, sorted(cores)[:CORES])
    try:
        process = subprocess.Popen(
            [sys.executable, *contender.command(run)],
            cwd=ROOT,
            env=contender.environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    finally:
        os.sched_setaffinity(0, cores)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _records(path: Path) -> list[Record]:
    """Return the JSON lines of a file that another process may be writing; a line without its end is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def first_with(points: Sequence[Point], target: float, limit: float) -> Point | None:
    """Return the first validation with an MRR of ``target`` within ``limit`` minutes."""
    return next((point for point in points if point.mrr >= target and point.minutes <= limit), None)


def columns(points: Sequence[Point], targets: Sequence[float], limit: float) -> dict[str, float]:
    """Return minutes and training seconds until each target that was reached, and the best MRR within the limit."""
    values = {"best MRR": max((point.mrr for point in points if point.minutes <= limit), default=0.0)}
    for target in targets:
        point = first_with(points, target, limit)
        if point is not None:
            name = decimal(target, 2)
            values |= {f"{name}, min": point.minutes, f"{name}, training s": point.training_seconds}
    return values


def missed(points: Sequence[Point], targets: Sequence[float], limit: float) -> str:
    """Say which targets were not reached; empty if all were."""
    names = [decimal(target, 2) for target in targets if first_with(points, target, limit) is None]
    last = points[-1].minutes if points else 0.0
    return f"{', '.join(names)}: not within {limit:g} minutes, last validated after {last:.1f}" if names else ""


def main(arguments: Sequence[str] | None = None) -> Path:
    """Train every contender in turn; a repetition is a seed."""
    session = begin(__file__, str(__doc__), arguments, "store", "minutes", "variants", repetitions=1)
    store = Path(session.store).absolute()
    graph = QUICK if session.quick else graph_of(store)
    limit = session.options.minutes or graph.minutes
    figures, curves, notes = Figures(), dict[str, list[Any]](), dict[str, list[str]]()
    rows = graph.rows(session)
    for seed in session.repetitions:
        for row in rows:
            with tempfile.TemporaryDirectory() as folder:
                run = Run(str(store), Path(folder), seed, graph.interval)
                write_graph(Store.open(run.store), run.folder / "graph.npz")
                points = validations(graph.row(row), run, limit, graph.targets[-1])
            figures.add(row, columns(points, graph.targets, limit))
            curves.setdefault(row, []).append([[round(value, 4) for value in astuple(point)] for point in points])
            notes.setdefault(row, []).append(missed(points, graph.targets, limit))
    shown = Run(session.store, Path("FOLDER"), 0, graph.interval)
    settings = {
        "graph": graph_settings(Store.open(session.store)),
        "targets": graph.targets,
        "minutes": limit,
        "commands": {row: ["python", *graph.row(row).command(shown)] for row in rows},
        "missed": notes,
        "curves": curves,
        "columns of a curve": [field.name for field in fields(Point)],
    }
    return finish(session, settings, figures, part=store.name)


if __name__ == "__main__":
    main()
