"""``report.html``: a run in one file that opens anywhere, without a network."""

from __future__ import annotations

import os
from html import escape
from importlib.resources import files
from pathlib import Path

from distkg.reporting import sections
from distkg.reporting.run_record import RunRecord, read_run

# Sorts the table whose heading was clicked; numbers by their full value, text by its letters.
_SORT = """
document.querySelectorAll("table.sortable th button").forEach(button => button.onclick = () => {
  const th = button.parentElement, rows = th.closest("table").tBodies[0], i = th.cellIndex;
  const up = th.getAttribute("aria-sort") !== "ascending", key = row => row.cells[i].dataset.value;
  const text = row => row.cells[i].textContent;
  const order = (a, b) => key(a) !== undefined && key(b) !== undefined
    ? key(a) - key(b) : text(a).localeCompare(text(b));
  [...rows.rows].sort((a, b) => up ? order(a, b) : order(b, a)).forEach(row => rows.append(row));
  for (const other of th.parentElement.cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
});
"""


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Works on whatever a run has left: a run that stopped early gets the parts that its files support.

    Raises:
        RunError: the folder is not a run, or one of its files cannot be read.
    """
    record = read_run(Path(run))
    path = record.folder / "report.html"
    unfinished = path.with_suffix(".html.part")
    unfinished.write_text(render(record), encoding="utf-8")
    os.replace(unfinished, path)
    return path


def render(run: RunRecord) -> str:
    """The page as a string."""
    style = files("distkg.reporting").joinpath("report.css").read_text(encoding="utf-8")
    title = escape(f"{run.folder.resolve().name} · distkg")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head>"
        f"<body><main>{_header(run)}{sections.headline(run)}{_grid(run)}</main><script>{_SORT}</script></body></html>\n"
    )


def _header(run: RunRecord) -> str:
    model, data = run.config.get("model", {}), run.config.get("data", {})
    subject = " · ".join(
        str(part)
        for part in (
            model.get("name"),
            f"{model['dim']} dimensions" if "dim" in model else None,
            run.config.get("objective", {}).get("name"),
            data.get("store"),
        )
        if part
    )
    state = "finished" if run.finished else "not finished"
    badge = f'<span class="badge {"done" if run.finished else "open"}">{state}</span>'
    name = escape(run.folder.resolve().name)
    return f"<header><h1>{name} {badge}</h1><p>{escape(subject)}</p>{_warnings(run)}</header>"


def _warnings(run: RunRecord) -> str:
    texts = []
    if not run.finished:
        texts.append(
            "There is no result.json: the run is going on or stopped early. What it had written is shown; "
            "`distkg train CONFIG --run RUN --resume` goes on from its latest checkpoint."
        )
    if run.damaged_lines:
        texts.append(f"{run.damaged_lines} line(s) of metrics.jsonl could not be read and are left out.")
    return "".join(f'<p class="warning" role="status">{escape(text)}</p>' for text in texts)


def _grid(run: RunRecord) -> str:
    parts = (
        sections.metrics_table,
        sections.curves,
        sections.hits_curve,
        sections.learning_rate,
        sections.by_group,
        sections.by_relation,
        sections.throughput,
        sections.memory,
        sections.graph,
        sections.configuration,
    )
    return f'<div class="grid">{"".join(part(run) for part in parts)}</div>'
