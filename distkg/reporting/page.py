"""Frame of a report: one HTML file without external resources."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from distkg.data.storage.atomic_file import replace_text
from distkg.data.storage.local_path import local_path
from distkg.printable import printable_html as escape

# Sort a table by the clicked heading: numbers by their full value, text alphabetically.
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


def page(name: str, heading: str, subject: Iterable[str], warnings: Iterable[str], body: str) -> str:
    """Return a whole page.

    Args:
        name: title of the window; escaped.
        heading: HTML of the heading.
        subject: subject of the page, shown below the heading; escaped.
        warnings: warnings shown at the top; escaped.
        body: HTML of the content below.
    """
    style = files("distkg.reporting").joinpath("report.css").read_text(encoding="utf-8")
    about = escape(" · ".join(subject))
    notes = "".join(f'<p class="warning" role="status">{escape(text)}</p>' for text in warnings)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} · distkg</title><style>{style}</style></head>"
        f"<body><main><header><h1>{heading}</h1><p>{about}</p>{notes}</header>{body}</main>"
        f"<script>{_SORT}</script></body></html>\n"
    )


def write_page(path: Path, text: str) -> Path:
    """Write or replace a page atomically; missing parent folders are created.

    Raises:
        NotAFileError: ``path`` is a folder, device, pipe or socket.
    """
    path = local_path(path, "page", "file")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)
    return path
