"""Builders of HTML text; every label from a graph or a file passes through ``escape``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distkg.printable import printable_html as escape
from distkg.reporting.svg import STYLES, swatch

GAP = "–"


@dataclass(frozen=True)
class Cell:
    """Table cell with attributes besides its text.

    Attributes:
        text: displayed text; escaped.
        value: number to sort by; cells without one are sorted as text.
        best: mark it as the best of its column.
        series: index of the chart series whose line is shown before the text.
        badge: a word in a coloured badge after the text; escaped.
    """

    text: str
    value: float | None = None
    best: bool = False
    series: int | None = None
    badge: str = ""


Content = str | float | Cell


def card(title: str, body: str, note: str = "", *, wide: bool = False) -> str:
    """Return a titled box; empty without a body. ``title`` and ``note`` are escaped, ``body`` is HTML."""
    if not body:
        return ""
    lead = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section class="card{" wide" if wide else ""}"><h2>{escape(title)}</h2>{lead}{body}</section>'


def grid(cards: Iterable[str]) -> str:
    """Return cards in two columns, or in one if the window is narrow."""
    return f'<div class="grid">{"".join(cards)}</div>'


def badge(text: str, *, done: bool) -> str:
    """Return a word in a coloured badge, such as the state of a run."""
    return f'<span class="badge {"done" if done else "open"}">{escape(text)}</span>'


def tiles(items: Sequence[tuple[str, str, str]]) -> str:
    """Return headline numbers from (label, value, small print)."""
    return "".join(
        f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b><small>{escape(small)}</small></div>'
        for label, value, small in items
    )


def table(
    header: Sequence[str], rows: Sequence[Sequence[Content]], *, sortable: bool = False, classes: str = ""
) -> str:
    """Return a table; numbers are right-aligned and carry their full value for sorting."""
    if not rows:
        return ""
    numeric = [_is_numeric([row[i] for row in rows]) for i in range(len(header))]
    head = "".join(_heading(name, is_number, sortable) for name, is_number in zip(header, numeric, strict=True))
    body = "".join(f"<tr>{''.join(map(_cell, row, numeric))}</tr>" for row in rows)
    named = " ".join(name for name in ("sortable" if sortable else "", classes) if name)
    return (
        f'<div class="scroll"><table class="{named}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def bars(rows: Sequence[tuple[str, float, str]], top: float | None = None, *, coloured: bool = False) -> str:
    """Return horizontal bars from (label, value, value as text).

    ``top`` is the value of a full bar; ``coloured`` gives the bars the colours of a chart's series, in order.
    """
    if not rows:
        return ""
    full = top or max(value for _, value, _ in rows) or 1.0
    drawn = [_bar(row[0], row[1] / full, row[2], i if coloured else 0) for i, row in enumerate(rows)]
    return f'<dl class="bars">{"".join(drawn)}</dl>'


def definitions(items: Sequence[tuple[str, str]]) -> str:
    """Return a list of names and values."""
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in items)
    return f'<dl class="pairs">{pairs}</dl>' if items else ""


def folded(title: str, body: str) -> str:
    """Return a section that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>" if body else ""


def _heading(name: str, is_number: bool, sortable: bool) -> str:
    kind = ' class="number"' if is_number else ""
    inner = f'<button type="button">{escape(name)}</button>' if sortable else escape(name)
    return f'<th scope="col"{kind}>{inner}</th>'


def _is_numeric(column: Sequence[Content]) -> bool:
    """Return whether a column holds only numbers and gaps."""
    filled = [content for content in column if content not in ("", GAP)]
    return bool(filled) and all(
        content.value is not None if isinstance(content, Cell) else not isinstance(content, str) for content in filled
    )


def _cell(content: Content, is_number: bool) -> str:
    if isinstance(content, str):
        kind = ' class="number"' if is_number else ""
        return f"<td{kind}>{escape(content)}</td>"
    if isinstance(content, Cell):
        return _rich_cell(content)
    text = f"{content:,}" if isinstance(content, int) else f"{content:.4f}" if content <= 1 else f"{content:,.1f}"
    return f'<td class="number" data-value="{content!r}">{text}</td>'


def _rich_cell(cell: Cell) -> str:
    text = f"<strong>{escape(cell.text)}</strong>" if cell.best else escape(cell.text)
    if cell.value is not None:
        return f'<td class="number" data-value="{cell.value!r}">{text}</td>'
    key = swatch(cell.series) if cell.series is not None else ""
    return f'<td class="name">{key}{text}{badge(cell.badge, done=False) if cell.badge else ""}</td>'


def _bar(label: str, share: float, text: str, series: int) -> str:
    width = f"{100 * min(max(share, 0.0), 1.0):.1f}%"
    bar = f'<i class="key s{series % STYLES}" style="width:{width}"></i>'
    value = f'<span class="value">{escape(text)}</span>'
    return f'<dt>{escape(label)}</dt><dd><span class="track">{bar}</span>{value}</dd>'
