"""Small builders of HTML text; every label that comes from a graph or a file passes through ``escape``."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def card(title: str, body: str, note: str = "", *, wide: bool = False) -> str:
    """One titled box; empty where there is no body. ``title`` and ``note`` are escaped, ``body`` is HTML."""
    if not body:
        return ""
    lead = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section class="card{" wide" if wide else ""}"><h2>{escape(title)}</h2>{lead}{body}</section>'


def tiles(items: Sequence[tuple[str, str, str]]) -> str:
    """Headline numbers: (label, value, small print)."""
    return "".join(
        f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b><small>{escape(small)}</small></div>'
        for label, value, small in items
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str | float]], *, sortable: bool = False) -> str:
    """A table; numbers are right-aligned and carry their full value for sorting."""
    if not rows:
        return ""
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    head = "".join(_heading(name, is_number, sortable) for name, is_number in zip(header, numeric, strict=True))
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    kind = ' class="sortable"' if sortable else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def bars(rows: Sequence[tuple[str, float, str]], top: float | None = None, *, coloured: bool = False) -> str:
    """Horizontal bars: (label, value, value as written).

    ``top`` is the value of a full bar; ``coloured`` gives the bars the colours of a chart's series, in order.
    """
    if not rows:
        return ""
    full = top or max(value for _, value, _ in rows) or 1.0
    drawn = [_bar(row[0], row[1] / full, row[2], i if coloured else 0) for i, row in enumerate(rows)]
    return f'<dl class="bars">{"".join(drawn)}</dl>'


def definitions(items: Sequence[tuple[str, str]]) -> str:
    """A list of names and values."""
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in items)
    return f'<dl class="pairs">{pairs}</dl>' if items else ""


def folded(title: str, body: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>" if body else ""


def _heading(name: str, is_number: bool, sortable: bool) -> str:
    kind = ' class="number"' if is_number else ""
    inner = f'<button type="button">{escape(name)}</button>' if sortable else escape(name)
    return f'<th scope="col"{kind}>{inner}</th>'


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if value <= 1 else f"{value:,.1f}"
    return f'<td class="number" data-value="{value!r}">{text}</td>'


def _bar(label: str, share: float, text: str, series: int) -> str:
    width = f"{100 * min(max(share, 0.0), 1.0):.1f}%"
    bar = f'<i class="key s{series % 6}" style="width:{width}"></i>'
    value = f'<span class="value">{escape(text)}</span>'
    return f'<dt>{escape(label)}</dt><dd><span class="track">{bar}</span>{value}</dd>'
