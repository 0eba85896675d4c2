"""Seconds of the commands of a small run: what a user waits for that is not training.

Each command is a process of its own, after one that filled the caches. Of a training, the seconds until its first line
(the plan) and until its first report stand beside those until its end. A process that imports torch and does nothing
is the floor of all commands that compute.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import BenchmarkError, Figures, Session, begin, finish, graph_settings, rows_wanted
from distkg.data.store.graph_store import Store

REPORT = "["
"""Beginning of the lines that report on a training."""

DISTKG = ("-m", "distkg")
ALONE, TOGETHER = "train, one worker", "train, two workers"


def commands(session: Session, folder: Path) -> dict[str, list[str]]:
    """Return the arguments of Python by name, in their order; trainings come before what reads their run."""
    preset, sizes = f"preset:{session.options.preset}", ["--set", f"data.store={session.store}"]
    epochs = [*sizes, "--set", f"train.epochs={session.options.epochs}"]
    run, store = str(folder / "run"), Store.open(session.store)
    train = [*DISTKG, "train", preset, *epochs, "--run"]
    anchor, relation = (labels[0].as_py() for labels in (store.entity_labels(), store.relation_labels()))
    query = ["--anchor", anchor, "--relation", relation, "--top", "1"]
    return {
        "import torch": ["-c", "import torch"],
        "help": [*DISTKG, "--help"],
        "presets": [*DISTKG, "presets"],
        "config": [*DISTKG, "config", preset],
        "plan": [*DISTKG, "plan", preset, *sizes],
        ALONE: [*train, run, "--workers", "1"],
        TOGETHER: [*train, str(folder / "together"), "--workers", "2"],
        "evaluate": [*DISTKG, "evaluate", run],
        "predict": [*DISTKG, "predict", run, *query],
        "report": [*DISTKG, "report", run],
    }


def timed(arguments: Sequence[str]) -> dict[str, float]:
    """Run Python with arguments; return seconds until its end, and of a training until its first lines.

    Raises:
        BenchmarkError: it failed; the message ends with what it printed last.
    """
    start, lines = time.perf_counter(), list[tuple[float, str]]()
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines.extend((time.perf_counter() - start, line) for line in process.stdout)
    seconds = time.perf_counter() - start
    if process.returncode:
        printed = "".join(line for _, line in lines)[-2000:]
        raise BenchmarkError(f"{' '.join(arguments)} ended with exit code {process.returncode}:\n{printed}")
    reports = [moment for moment, line in lines if line.startswith(REPORT)]
    first = {"first line s": lines[0][0], "first report s": reports[0]} if reports else {}
    return {**first, "seconds": seconds}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure every command, in each repetition in a new folder."""
    session = begin(__file__, str(__doc__), arguments, "store", "preset", "epochs", "variants", repetitions=5)
    figures = Figures()
    for number in range(-1, len(session.repetitions)):
        with tempfile.TemporaryDirectory() as name:
            wanted = commands(session, Path(name))
            for row in rows_wanted(session, wanted):
                values = timed(wanted[row])
                if number >= 0:  # the first time fills the caches
                    figures.add(row, values)
    settings = {"preset": session.options.preset, "epochs": session.options.epochs}
    return finish(session, settings | {"graph": graph_settings(Store.open(session.store))}, figures)


if __name__ == "__main__":
    main()
