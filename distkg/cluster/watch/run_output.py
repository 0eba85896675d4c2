"""Terminal of the process that drives a run: progress, notices, and the last line of a run that is stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from distkg.cluster.watch import run_folder
from distkg.cluster.watch.progress_monitor import Display, Follower, LineTail, Listener
from distkg.data.storage.objects import StoreUnavailableError
from distkg.data.storage.working_copy import copy_of, shown
from distkg.printable import printable
from distkg.termination import SignalHandling

LOOK_SECONDS, FETCH_SECONDS = 0.25, 2.0
LAST_LINES_SECONDS = 2.0  # maximum wait for the last lines of workers when a run is stopped


@dataclass(frozen=True)
class Place:
    """Run folder of a launch.

    Attributes:
        folder: folder on this machine; for a run in an object store, the driver's copy.
        address: path or address from which workers open the folder.
    """

    folder: Path
    address: str


@dataclass(frozen=True)
class Output:
    """Terminal of the driver.

    Attributes:
        display: display of the progress.
        follower: thread that passes the lines of workers to the display.
    """

    display: Display
    follower: Follower

    def notice(self, text: str) -> None:
        self.display.notice(text)

    def last_line(self, text: str) -> None:
        """Print a line after all lines of workers."""
        self.follower.finish(LAST_LINES_SECONDS)
        self.display.notice(text)


@contextmanager
def following(folder: Path, display: Display, listener: Listener, failed: Listener | None = None) -> Iterator[Output]:
    """Show what is new in the files of a run while the context is open.

    Args:
        folder: run folder; for a run in an object store, the copy of this process.
        display: display of the progress.
        listener: function called with every new line of metrics.jsonl. Its error is raised at the end of the context.
        failed: function called with every new line of failures.jsonl; None if this process writes the files itself.
    """
    followed = [
        (LineTail(folder / run_folder.METRICS), listener),
        (LineTail(folder / run_folder.NOTICES), lambda record: display.notice(record["notice"])),
    ]
    if failed is None:
        follower = Follower(followed, LOOK_SECONDS)
    else:
        follower = Follower([*followed, (LineTail(folder / run_folder.FAILURES), failed)], *_look_at(folder))
    with display, follower:
        yield Output(display, follower)
    if follower.error is not None:
        raise follower.error


def _look_at(folder: Path) -> tuple[float, Callable[[], None]]:
    """Return how often to look at the files that workers write (s), and how to fetch them."""
    copy = copy_of(folder)
    if copy is None:
        return LOOK_SECONDS, lambda: None
    copy.keep(run_folder.FAILURES)  # Ray Train's controller writes it on this node
    written = (run_folder.METRICS, run_folder.NOTICES)

    def fetch() -> None:
        with suppress(StoreUnavailableError):  # workers need the store more than the display does
            copy.refresh(written)

    return FETCH_SECONDS, fetch


def report_stop(run: Path, output: Output, signals: SignalHandling) -> None:
    """Print once, as the last line, how a signal has ended a run."""
    if not signals.reported:
        signals.reported = True
        output.last_line(describe_stop(run, signals.name))


def describe_stop(run: Path, by: str) -> str:
    """Return the last line of output of a run that a signal has ended."""
    step = run_folder.newest_step(run)
    how = "before the first checkpoint" if step is None else f"with a checkpoint at step {step:,}"
    return f"stopped by {by}, {how}. {how_to_resume(run)}"


def how_to_resume(run: Path) -> str:
    """Return the sentence that says how to resume a run."""
    return f"Continue with the same command and --resume; the run is in {printable(shown(run))}"
