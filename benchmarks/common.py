"""What every benchmark shares: its command line, figures by repetition, the table and the result file."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from distkg.data.store.graph_store import Store
from distkg.data.store.known_answers import KnownAnswers
from distkg.evaluation.ranking import both_queries
from distkg.planning.machine import memory_limit
from distkg.training.run_dir import versions

RESULTS = Path(__file__).parent / "results"
_PEERS = ("pykeen", "torch-geometric", "triton")


class BenchmarkError(ValueError):
    """A machine or an argument that a benchmark cannot work with."""


@dataclass(frozen=True)
class Session:
    """One call of a benchmark.

    Attributes:
        name: of the script, as in ``python -m benchmarks.NAME``.
        title: shown above the table.
        arguments: as typed.
        options: as parsed.
        started: load average over a minute when it began.
    """

    name: str
    title: str
    arguments: list[str]
    options: argparse.Namespace
    started: float = field(default_factory=lambda: os.getloadavg()[0])

    @property
    def quick(self) -> bool:
        """Whether only the smallest work is asked for, to see that the script runs."""
        return bool(self.options.quick)

    @property
    def repetitions(self) -> range:
        return range(1 if self.quick else self.options.repetitions)

    @property
    def store(self) -> str:
        """Address of the graph store given by the user."""
        return str(self.options.store)


def begin(script: str, description: str, arguments: Sequence[str] | None, *needs: str, repetitions: int = 5) -> Session:
    """Parse the command line of a benchmark.

    Args:
        script: its ``__file__``.
        description: its docstring.
        arguments: without the program; None for those of this process.
        needs: names of its own options, such as ``store``.
        repetitions: unless the command line says otherwise.
    """
    name = Path(script).stem
    typed = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=description.partition("\n\n")[0])
    for need in needs:
        parser.add_argument(f"--{need}", **{"required": True, **_NEEDS[need]})
    parser.add_argument(
        "--repetitions", type=_at_least_one, default=repetitions, help="how often everything is measured"
    )
    parser.add_argument("--quick", action="store_true", help="tiny work, once: shows that the script runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    return Session(name, description.partition("\n")[0], typed, parser.parse_args(typed))


_NEEDS: dict[str, dict[str, Any]] = {
    "store": {"metavar": "PATH", "help": "graph store made by `distkg prepare` or `distkg generate`"},
    "folder": {"metavar": "PATH", "help": "new folder for what the benchmark makes"},
    "preset": {"metavar": "NAME", "help": "configuration that comes with distkg"},
    "source": {"metavar": "PATH", "help": "folder with the files train, valid and test of a graph"},
    "seconds": {"type": float, "help": "time limit of each run"},
    "epochs": {"type": int, "help": "epochs of each run"},
    "steps": {"type": int, "help": "steps of each run"},
    "minutes": {"type": float, "required": False, "help": "minutes of faults, or of each contender's training"},
    "every": {"type": float, "default": 120.0, "required": False, "help": "seconds from fault to fault"},
    "note": {"default": "", "required": False, "help": "remark for the result file"},
    "seed": {"type": int, "default": 0, "required": False, "help": "seed of what is drawn"},
    "model": {"metavar": "PATH", "help": "folder of a foundation model, or of a run that trained one"},
    "models": {
        "metavar": "[NAME=]PATH",
        "nargs": "+",
        "help": "folders of foundation models or of runs, or files of published checkpoints",
    },
    "data": {"metavar": "FOLDER", "help": "folder with a folder for each data set"},
    "learned-from": {
        "metavar": "[NAME=]FAMILY",
        "nargs": "+",
        "default": [],
        "required": False,
        "help": "families of graphs that the models learned from, such as FB WN CoDEx, or NAME=FB,WN of one model",
    },
    "format": {
        "choices": ("ultra", "trix", "motif", "semma"),
        "default": "ultra",
        "required": False,
        "help": "format of the published checkpoints",
    },
    "graphs": {"metavar": "PATH", "nargs": "+", "help": "stores to train on"},
    "stores": {"metavar": "PATH", "nargs": "+", "help": "stores to be asked about; of two in a folder, the second"},
    "variants": {"metavar": "ROW", "nargs": "+", "required": False, "help": "rows of the table; default: all"},
    "device": {"choices": ("cpu", "cuda"), "default": "cpu", "required": False, "help": "where it is measured"},
}


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} repetitions measure nothing; give 1 or more")
    return number


def rows_wanted(session: Session, known: Iterable[str]) -> list[str]:
    """The rows that ``--variants`` names, or all.

    Raises:
        BenchmarkError: one is unknown.
    """
    names = list(known)
    wanted = session.options.variants or names
    if unknown := set(wanted) - set(names):
        raise BenchmarkError(f"{', '.join(sorted(unknown))} is no row. There are: {', '.join(names)}")
    return list(wanted)


class Figures:
    """Figures in rows and columns, one value for each repetition."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, list[float]]] = {}

    def add(self, row: str, values: Mapping[str, float]) -> None:
        """Append one repetition's values, column → value."""
        columns = self._values.setdefault(row, {})
        for column, value in values.items():
            columns.setdefault(column, []).append(value)

    def median(self, row: str, column: str) -> float:
        return statistics.median(self._values[row][column])

    def to_dict(self) -> dict[str, Any]:
        """Row → column → median and every repetition's value, in the order measured."""
        return {
            row: {
                column: {"median": statistics.median(values), "repetitions": values}
                for column, values in columns.items()
            }
            for row, columns in self._values.items()
        }

    def table(self, title: str) -> Table:
        """Medians."""
        columns = list(dict.fromkeys(column for values in self._values.values() for column in values))
        table = Table(title=title, title_justify="left")
        table.add_column("", no_wrap=True)
        for column in columns:
            table.add_column(column, justify="right")
        for row, values in self._values.items():
            cells = [_shown(self.median(row, column)) if column in values else "" for column in columns]
            table.add_row(row, *cells)
        return table


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def finish(session: Session, settings: Mapping[str, Any], figures: Figures, part: str = "") -> Path:
    """Print the table of medians and write DATE-NAME.json; a repeated run of a day replaces the earlier one.

    Args:
        session: what ``begin`` gave.
        settings: sizes that decide the work.
        figures: what was measured.
        part: distinguishes files of one benchmark, if it has several.
    """
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    content = {
        "benchmark": session.name,
        "date": now,
        "command": " ".join(["python", "-m", f"benchmarks.{session.name}", *session.arguments]),
        "hardware": {**hardware(), "load_at_start": session.started},
        "versions": versions(*_PEERS),
        "settings": dict(settings),
        "figures": figures.to_dict(),
    }
    suffix = (f"-{part}" if part else "") + ("-quick" if session.quick else "")
    path = Path(session.options.results) / f"{now[:10]}-{session.name}{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(figures.table(session.title), f"written to {path}", sep="\n")
    return path


def hardware() -> dict[str, Any]:
    """Processor, its instruction set as PyTorch names it, cores that this process may use, and memory."""
    return {
        "processor": _cpu_field("model name"),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "family_model": f"{_cpu_field('cpu family')}/{_cpu_field('model')}",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_limit() / 2**30, 1),
    }


def _cpu_field(name: str) -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def graph_settings(store: Store) -> dict[str, Any]:
    """Sizes of a graph, for the result file."""
    return {"entities": store.num_entities, "relations": store.num_relations, "triples": dict(store.manifest.triples)}


def settings_of(work: Any, **more: Any) -> dict[str, Any]:
    """The fields of a dataclass of sizes, and more."""
    return {**asdict(work), **more}


def finished_at(device: str | torch.device) -> float:
    """The time, once the device has done all that it was asked for."""
    if torch.device(device).type != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def known_answers_of(store: Store, triples: np.ndarray) -> KnownAnswers:
    """Return all known answers, of any split, to the queries of these triples [n, 3]; the store is streamed."""
    queries, _ = both_queries(triples, store.num_relations)
    splits = list(store.manifest.triples)
    return KnownAnswers.for_queries(store.iter_triples(splits), store.num_relations, np.unique(queries, axis=0))
