"""``report.html``: the results of a run so far, on one page."""

from __future__ import annotations

from pathlib import Path

from distkg.data.storage.working_copy import name_of
from distkg.printable import printable_html as escape
from distkg.reporting import html, sections
from distkg.reporting.page import page, write_page
from distkg.reporting.run_record import RunRecord, read_run


def write_report(run: Path, to: Path | None = None) -> Path:
    """Write the page of a run and return its path: ``to``, or ``report.html`` in the run folder.

    A run that stopped early gets the sections that its files support.

    Raises:
        RunError: the folder is not a run, or one of its files cannot be read.
        NotAFileError: ``to`` is a folder, device, pipe or socket.
    """
    record = read_run(Path(run))
    return write_page(to or record.folder / "report.html", render(record))


def render(run: RunRecord) -> str:
    """Return the page as a string."""
    name = name_of(run.folder)
    heading = f"{escape(name)} {html.badge('finished' if run.finished else 'not finished', done=run.finished)}"
    return page(name, heading, sections.subject(run), _warnings(run), sections.headline(run) + _grid(run))


def _warnings(run: RunRecord) -> list[str]:
    texts = [*sections.damage(run), *run.notices]
    if run.finished:
        return texts
    unfinished = (
        "There is no result.json: the run is still training or stopped early. The page shows its results so far; "
        "`distkg train CONFIG --run RUN --resume` continues from its latest checkpoint."
    )
    return [unfinished, *texts]


def _grid(run: RunRecord) -> str:
    parts = (
        sections.metrics_table,
        sections.curves,
        sections.hits_curve,
        sections.learning_rate,
        sections.by_group,
        sections.by_graph,
        sections.by_relation,
        sections.negatives,
        sections.throughput,
        sections.memory,
        sections.graph,
        sections.accepted_changes,
        sections.grown_from,
        sections.configuration,
    )
    return html.grid(part(run) for part in parts)
