"""Commands run as a user runs them, in a process group of their own, so that signals and leftovers can be looked at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
GENEROUS = 300  # seconds; a machine under load is no failure


class Command:
    """A running ``distkg`` command, its output, and the processes that it has started."""

    def __init__(self, folder: Path, *arguments: str | Path, paths: Sequence[Path] = ()) -> None:
        """Start it in a folder; modules are also looked for in ``paths``."""
        self._output = folder / f"output-{time.monotonic_ns()}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment["RAY_worker_niceness"] = "0"  # as in conftest.py
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "distkg", *map(str, arguments)],
                cwd=folder,
                env=environment | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, *paths))), "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
            )
        self._children: set[psutil.Process] = set()

    @property
    def output(self) -> str:
        return self._output.read_text()

    def children(self) -> list[psutil.Process]:
        """Those alive among all that were ever seen."""
        with suppress(psutil.NoSuchProcess):
            self._children.update(psutil.Process(self.process.pid).children(recursive=True))
        return [child for child in self._children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + GENEROUS
        while not condition():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> int:
        """Send a signal; the exit code, once every child is gone."""
        self.children()
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        code = self.process.wait(GENEROUS)
        deadline = time.monotonic() + GENEROUS
        while left := self.children():
            assert time.monotonic() < deadline, f"left behind: {[child.cmdline()[:3] for child in left]}"
            time.sleep(0.1)
        return code


@contextmanager
def command(folder: Path, *arguments: str | Path) -> Iterator[Command]:
    running = Command(folder, *arguments)
    try:
        yield running
    finally:
        for child in running.children():
            with suppress(psutil.NoSuchProcess):
                child.kill()
        running.process.kill()
        running.process.wait()


def write_config(folder: Path, store: Path, **sections: dict[str, object]) -> Path:
    """A run that goes on until somebody stops it."""
    tree: dict[str, dict[str, object]] = {
        "data": {"store": str(store)},
        "model": {"name": "distmult", "dim": 32},
        "train": {"epochs": 1_000_000, "batch_size": 128},
        "evaluate": {"every": 1_000_000},
        "checkpoint": {"every": 5},
    }
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def lines_of(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0
