"""Progress display of work in stages, such as reading a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from distkg.printable import printable


@contextmanager
def show_stages(console: Console | None = None) -> Iterator[Callable[[str, int], None]]:
    """Yield a callback (stage, triples done) whose latest call is shown on standard error; silent if it is no
    terminal."""
    console = console or Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("opening files")
        yield lambda stage, done: progress.update(task, description=f"{printable(stage)}: {done:,} triples")
