"""Time of a search beside the training of its trials: workers that stay from trial to trial, and workers of Ray Train.

`distkg tune` runs in a process of its own, with trials of equal length that are validated at their end only, so that
none is stopped early. A trial's seconds beside its training are those from the record of the trial before it (for the
first one from the start of the command) to its own, less its seconds of training. Processor seconds are those of the
command and of all processes that it started, daemons included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.common import BenchmarkError, Figures, begin, finish, graph_settings, rows_wanted, settings_of
from distkg.data.store.graph_store import Store

LOOK_SECONDS = 0.1
WORKERS = 2
ROWS = {
    "kept workers": {},
    # A search whose number of workers may vary has its trials trained by Ray Train.
    "Ray Train for each trial": {"min_workers": WORKERS},
}


@dataclass(frozen=True)
class Search:
    """Sizes of a search: its trials, and the seconds of training of each."""

    trials: int
    seconds: float


class ProcessorTime(threading.Thread):
    """Processor seconds of a process and of all that it started, sampled while it runs."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._process, self._ended = process, threading.Event()
        self._seconds: dict[psutil.Process, float] = {}

    def run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with suppress(psutil.Error):
                for each in [self._process, *self._process.children(recursive=True)]:
                    with suppress(psutil.Error):
                        self._seconds[each] = sum(each.cpu_times()[:2])

    def stop(self) -> float:
        """Return the processor seconds of all processes that were seen."""
        self._ended.set()
        self.join()
        return sum(self._seconds.values())


def config_of(store: str, work: Search, cluster: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the trials: ComplEx that trains until its time limit."""
    return {
        "data": {"store": store},
        "model": {"name": "complex", "dim": 128},
        "objective": {"name": "one_vs_all"},
        "optimizer": {"learning_rate": 0.1},
        "train": {
            "workers": WORKERS,
            "epochs": 100_000,
            "batch_size": 128,
            "time_limit_seconds": work.seconds,
        },
        "evaluate": {"every": 100_000},
        "checkpoint": {"every": 100_000},
        "cluster": cluster,
    }


def run_search(folder: Path, config: dict[str, Any], trials: int) -> tuple[list[float], float, float]:
    """Return the seconds beside each trial's training, and the seconds and processor seconds of the whole command.

    Raises:
        BenchmarkError: the search failed; the message has its output.
    """
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "space.yaml").write_text("optimizer.learning_rate: {log_uniform: [1.0e-2, 0.3]}\n")
    paths = [str(folder / name) for name in ("config.yaml", "space.yaml", "search")]
    command = [sys.executable, "-m", "distkg", "tune", paths[0], "--space", paths[1], "--run", paths[2]]
    ends: list[float] = []
    log, started = folder / "search" / "search.jsonl", time.monotonic()
    with (folder / "output").open("w") as output:
        search = subprocess.Popen([*command, "--trials", str(trials)], stdout=output, stderr=subprocess.STDOUT)
        processor = ProcessorTime(psutil.Process(search.pid))
        processor.start()
        while search.poll() is None:
            time.sleep(LOOK_SECONDS)
            lines = log.read_text().count("\n") if log.exists() else 0
            ends += [time.monotonic()] * (lines - len(ends))
    wall, used = time.monotonic() - started, processor.stop()
    if search.returncode or len(ends) != trials:
        raise BenchmarkError((folder / "output").read_text())
    records = [json.loads(line) for line in log.read_text().splitlines()]
    beside = [
        end - begin - record["seconds"]
        for begin, end, record in zip([started, *ends], ends, records, strict=False)  # the last has no successor
    ]
    return beside, wall, used


def main(arguments: Sequence[str] | None = None) -> Path:
    """Search with each row, one after the other."""
    session = begin(__file__, str(__doc__), arguments, "store", "seconds", "variants", repetitions=1)
    work = Search(3, 0.5) if session.quick else Search(12, session.options.seconds)
    store, figures = str(Path(session.store).absolute()), Figures()
    for _ in session.repetitions:
        for row in rows_wanted(session, ROWS):
            with tempfile.TemporaryDirectory() as folder:
                beside, wall, used = run_search(Path(folder), config_of(store, work, ROWS[row]), work.trials)
            figures.add(row, {"first trial s": beside[0], "search s": wall, "processor s": used})
            for seconds in beside[1:]:
                figures.add(row, {"later trials s": seconds})
    return finish(session, settings_of(work, graph=graph_settings(Store.open(store))), figures)


if __name__ == "__main__":
    main()
