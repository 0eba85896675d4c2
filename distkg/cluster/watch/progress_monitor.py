"""Progress display of a run in the driver: new lines of its metrics, and failures.

Workers write ``metrics.jsonl``; the driver reads it. Lines are not sent through Ray Train's ``report``, which every
rank must enter together and which would delay the training step; it is told of validations alone (``run_metrics``).
"""

from __future__ import annotations

import json
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from distkg.printable import printable_lines
from distkg.redaction import redact

Record = dict[str, Any]
Listener = Callable[[Record], None]


class LineTail:
    """Reader of the JSON lines that were added to a file since the last read.

    A run that returns to a checkpoint truncates its metrics at that step and continues: lines after the common prefix
    of both versions are new.
    """

    def __init__(self, path: Path, *, skip_present: bool = True) -> None:
        self._path = path
        self._seen: list[bytes] = []
        self._stamp: tuple[int, int] | None = None
        if skip_present:
            self.read()

    def read(self) -> list[Record]:
        """Return new complete lines, in order; empty if the file is missing or unchanged."""
        try:
            status = self._path.stat()
            stamp = (status.st_size, status.st_mtime_ns)
            if stamp == self._stamp or not stat.S_ISREG(status.st_mode):
                return []
            lines = self._path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        shared = _shared_prefix(self._seen, lines)
        self._stamp, self._seen = stamp, lines
        return [record for line in lines[shared:] if (record := _record(line)) is not None]


def _record(line: bytes) -> Record | None:
    """Return the object of a line; None for a line cut off by a crash."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _shared_prefix(old: list[bytes], new: list[bytes]) -> int:
    if new[: len(old)] == old:
        return len(old)
    return next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


class Follower:
    """Thread that reads metrics and failures of a run, and passes each record to its listener.

    Attributes:
        error: exception of a listener; listeners are then not called any more, and the run continues.
    """

    def __init__(
        self,
        sources: list[tuple[LineTail, Listener]],
        interval_s: float = 0.25,
        fetch: Callable[[], None] = lambda: None,
    ) -> None:
        """Follow files; ``fetch`` is called before each look at them."""
        self._sources, self._fetch = sources, fetch
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow-run", daemon=True)
        self.error: Exception | None = None

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def finish(self, seconds: float | None = None) -> None:
        """Pass on remaining records and end the thread; wait at most ``seconds`` for it."""
        self._stop.set()
        self._thread.join(seconds)

    def _follow(self) -> None:
        try:
            while not self._stop.wait(self._interval_s):
                self._pass_on()
            self._pass_on()
        except Exception as error:
            self.error = error

    def _pass_on(self) -> None:
        self._fetch()
        for tail, listener in self._sources:
            for record in tail.read():
                listener(record)


class Display(Protocol):
    """Protocol of the progress display of a run."""

    def metrics(self, record: Record) -> None: ...

    def notice(self, text: str) -> None: ...

    def __enter__(self) -> Display: ...

    def __exit__(self, *exception: object) -> None: ...


def describe(record: Record) -> str:
    """Format a line of metrics; missing values are left out.

    >>> describe({"epoch": 2.0, "loss": 0.5, "valid": {"mrr": 0.25}, "triples_per_second": 1234.5})
    'epoch 2  loss 0.5000  valid MRR 0.2500  1,234 triples/s'
    """
    parts = []
    if "epoch" in record:
        parts.append(f"epoch {record['epoch']:.3g}")
    if record.get("loss") is not None:
        parts.append(f"loss {record['loss']:.4f}")
    if (record.get("valid") or {}).get("mrr") is not None:
        parts.append(f"valid MRR {record['valid']['mrr']:.4f}{_by_weights(record.get('valid_by_weights') or {})}")
    if record.get("triples_per_second") is not None:
        parts.append(f"{int(record['triples_per_second']):,} triples/s")
    delivered = (record.get("negatives") or {}).get("delivered")
    if delivered is not None:
        parts.append(f"{delivered:.0%} of negatives delivered")
    return "  ".join(parts)


def _by_weights(metrics: Record) -> str:
    """Format the MRR of each kind of weights, if there are several.

    >>> _by_weights({"raw": {"mrr": 0.25}, "average": {"mrr": 0.26}})
    ' (raw 0.2500, average 0.2600)'
    """
    each = [f"{weights} {values['mrr']:.4f}" for weights, values in metrics.items()]
    return f" ({', '.join(each)})" if each else ""


def with_warnings(listener: Listener, display: Display) -> Listener:
    """Return a listener for lines of metrics.jsonl that also displays their warnings."""

    def heard(record: Record) -> None:
        for text in (record.get("negatives") or {}).get("warnings", ()):
            display.notice(f"WARNING: {text}")
        listener(record)

    return heard


class PlainDisplay:
    """Display with a line for each report, for job logs, pipes and CI."""

    def metrics(self, record: Record) -> None:
        print(f"[{record.get('time', 0):8.1f} s] {describe(record)}", flush=True)

    def notice(self, text: str) -> None:
        print(printable_lines(redact(text)), flush=True)

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        return


class BarDisplay:
    """Progress bar over epochs, with the latest metrics."""

    def __init__(self, epochs: int, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
        )
        self._task: TaskID = self._progress.add_task("training", total=epochs, numbers="starting workers")
        self._valid: Record | None = None

    def metrics(self, record: Record) -> None:
        self._valid = record.get("valid") or self._valid
        numbers = describe({**record, "valid": self._valid})
        self._progress.update(self._task, completed=record.get("epoch", 0), numbers=numbers)

    def notice(self, text: str) -> None:
        self._progress.console.print(printable_lines(redact(text)), highlight=False, markup=False)

    def __enter__(self) -> BarDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()


def make_display(epochs: int) -> Display:
    """Return a progress bar on a terminal, and plain lines elsewhere."""
    if sys.stdout is not None and sys.stdout.isatty():
        return BarDisplay(epochs, Console())
    return PlainDisplay()
