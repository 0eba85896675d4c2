"""Charts as inline SVG (lines, stacked columns and a log-log scatter plot) with the standard library alone.

Colours, dashes and fonts come from ``report.css`` through class names (``s0`` … ``s5`` for the colours of series,
``d1`` … ``d5`` for the dashes of lines), so that one chart serves light and dark pages and prints in grey. Every mark
carries a ``<title>``, which browsers show as a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from distkg.printable import printable_html as escape
from distkg.reporting.quantities import compact

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 14, 44
MAX_POINTS = 400
MAX_COLUMNS = 64
MAX_MARKS = 40
WIDEST_COLUMN = 48.0
STYLES = 6
LARGEST = 1e100
"""Largest value in a chart; larger and non-finite values are left out."""

Format = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """Line of a chart: a name for the legend and its points in order of x; dots without a line if not ``joined``."""

    name: str
    points: Sequence[tuple[float, float]]
    joined: bool = True


@dataclass(frozen=True)
class Axis:
    """Axis of a chart.

    Attributes:
        label: the quantity with its unit.
        log: base-10 logarithm; values must be positive.
        zero: begin at zero.
        top: fixed upper end, if the quantity has one.
        text: formatter of tick values.
    """

    label: str
    log: bool = False
    zero: bool = False
    top: float | None = None
    text: Format = compact


@dataclass(frozen=True)
class Scale:
    """Mapping from values to pixels: ``low`` to ``start``, ``high`` to ``end`` (powers of ten if ``log``)."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        position = math.log10(value) if self.log else value
        return self.start + (position - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round values inside the scale, in the data's own unit."""
        if self.log:
            return _decades(self.low, self.high)
        return nice_ticks(self.low, self.high)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return multiples of 1, 2 or 5 × 10^k within [low, high].

    >>> nice_ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if raw <= power * factor * 1.0000001)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Return at most ``limit`` points: means of equal runs, with the first and the last point kept."""
    if len(points) <= limit:
        return list(points)
    inner, runs = points[1:-1], limit - 2
    bounds = [len(inner) * i // runs for i in range(runs + 1)]
    groups = [inner[a:b] for a, b in pairwise(bounds)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [points[0], *means, points[-1]]


def line_chart(series: Sequence[Series], x: Axis, y: Axis) -> str:
    """Return lines over a common x; points that are not finite (or not positive on a log axis) are left out.

    The style of a line depends on its index in ``series``, so that it does not change if another line has no points.
    """
    usable = [_plottable(s.points, x, y) for s in series]
    kept = {
        i: Series(s.name, thin(points) if s.joined else points, s.joined)
        for i, (s, points) in enumerate(zip(series, usable, strict=True))
    }
    kept = {i: s for i, s in kept.items() if s.points}
    if not kept:
        return ""
    across = _scale(x, [p[0] for s in kept.values() for p in s.points], LEFT, WIDTH - RIGHT)
    up = _scale(y, [p[1] for s in kept.values() for p in s.points], HEIGHT - BOTTOM, TOP)
    several = len(series) > 1
    lines = [_line(s, i, across, up, x, y, quiet=several) for i, s in kept.items()]
    legend = _legend((swatch(i) if s.joined else _block(i), s.name) for i, s in kept.items()) if several else ""
    return legend + _picture(f"{y.label} by {x.label}", _frame(across, up, x, y) + "".join(lines))


def swatch(index: int) -> str:
    """Return a short piece of the line of series ``index``, for legends and tables."""
    line = f'<line class="{_stroke(index)}" x1="1" x2="33" y1="5" y2="5"/>'
    return f'<svg class="swatch" viewBox="0 0 34 10" aria-hidden="true">{line}</svg>'


def _block(index: int) -> str:
    return f'<i class="key s{index % STYLES}"></i>'


def scatter(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    """Return a scatter plot, such as a degree distribution on two log axes."""
    kept = _plottable(points, x, y)
    if not kept:
        return ""
    across = _scale(x, [p[0] for p in kept], LEFT, WIDTH - RIGHT)
    up = _scale(y, [p[1] for p in kept], HEIGHT - BOTTOM, TOP)
    dots = [_dot(point, 0, across, up, x, y) for point in kept]
    return _picture(f"{y.label} by {x.label}", _frame(across, up, x, y) + "".join(dots))


def column_chart(
    names: Sequence[str],
    columns: Sequence[tuple[str, Sequence[float]]],
    x: str,
    y: Axis,
    *,
    merge: str = "mean",
) -> str:
    """Return stacked columns.

    Args:
        names: the layers, from the bottom up.
        columns: (label, one value per layer).
        x: label of the horizontal axis.
        merge: aggregation of neighbouring columns if there are more than 64: mean or max.
    """
    kept = _merged(columns, merge)
    if not kept:
        return ""
    up = _scale(y, [sum(values) for _, values in kept], HEIGHT - BOTTOM, TOP)
    step = (WIDTH - RIGHT - LEFT) / len(kept)
    body = "".join(_column(c, i, step, up, names, y) for i, c in enumerate(kept))
    labels = _column_labels([label for label, _ in kept], step)
    legend = _legend((_block(i), n) for i, n in enumerate(names)) if len(names) > 1 else ""
    return legend + _picture(f"{y.label} by {x}", _grid(up, y) + body + labels + _titles(x, y.label))


def _plottable(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> list[tuple[float, float]]:
    def usable(value: float, axis: Axis) -> bool:
        return abs(value) < LARGEST and (value > 0 or not axis.log)

    return [(a, b) for a, b in points if usable(a, x) and usable(b, y)]


def _scale(axis: Axis, values: Sequence[float], start: float, end: float) -> Scale:
    low, high = min(values), max(values)
    if axis.log:
        low, high = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return Scale(low, max(high, low + 1), start, end, log=True)
    low = min(low, 0.0) if axis.zero else low
    high = high if axis.top is None else max(axis.top, high)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        high = low + (abs(low) or 1.0)
    return Scale(low, high, start, end, log=False)


def _decades(low: float, high: float) -> list[float]:
    stride = max(1, math.ceil((high - low) / 6))
    return [10.0**power for power in range(math.ceil(low), math.floor(high) + 1, stride)]


def _line(series: Series, index: int, across: Scale, up: Scale, x: Axis, y: Axis, *, quiet: bool) -> str:
    """Return one line; ``quiet`` hides its inner marks until the pointer is on them, because they would cover
    dashes."""
    if not series.joined:
        return "".join(_dot(p, index, across, up, x, y, series.name) for p in series.points)
    path = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in series.points)
    inner = series.points[:-1] if len(series.points) <= MAX_MARKS else []
    dots = [_dot(p, index, across, up, x, y, series.name, quiet=quiet) for p in inner]
    last = _dot(series.points[-1], index, across, up, x, y, series.name)
    return f'<polyline class="{_stroke(index)}" points="{path}"/>{"".join(dots)}{last}'


def _stroke(index: int) -> str:
    """Return the CSS classes of line ``index``: six colours by six dashes; the first six lines differ in both."""
    dash = (index + index // STYLES) % STYLES
    return f"line s{index % STYLES}" + (f" d{dash}" if dash else "")


def _dot(
    point: tuple[float, float],
    index: int,
    across: Scale,
    up: Scale,
    x: Axis,
    y: Axis,
    name: str = "",
    *,
    quiet: bool = False,
) -> str:
    a, b = point
    title = escape(f"{name + ': ' if name else ''}{y.text(b)} at {x.label} {x.text(a)}")
    place = f'cx="{across(a):.1f}" cy="{up(b):.1f}"'
    kind = f"dot s{index % STYLES}{' quiet' if quiet else ''}"
    return f'<circle class="{kind}" {place} r="3"><title>{title}</title></circle>'


def _column(
    column: tuple[str, Sequence[float]], index: int, step: float, up: Scale, names: Sequence[str], y: Axis
) -> str:
    label, values = column
    width, base, parts = min(max(step - min(2.0, step * 0.2), 0.5), WIDEST_COLUMN), 0.0, []
    left = LEFT + (index + 0.5) * step - width / 2
    for layer, value in enumerate(values):
        top, bottom = up(base + value), up(base)
        title = escape(f"{label}: {names[layer]} {y.text(value)}")
        box = f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{max(bottom - top, 0):.1f}"'
        parts.append(f'<rect class="area s{layer % STYLES}" {box}><title>{title}</title></rect>')
        base += value
    return "".join(parts)


def _merged(columns: Sequence[tuple[str, Sequence[float]]], merge: str) -> list[tuple[str, Sequence[float]]]:
    if len(columns) <= MAX_COLUMNS:
        return list(columns)
    bounds = [len(columns) * i // MAX_COLUMNS for i in range(MAX_COLUMNS + 1)]
    groups = [columns[a:b] for a, b in pairwise(bounds)]
    return [(_span(group), _join(group, merge)) for group in groups]


def _span(group: Sequence[tuple[str, Sequence[float]]]) -> str:
    return group[0][0] if len(group) == 1 else f"{group[0][0]} to {group[-1][0]}"


def _join(group: Sequence[tuple[str, Sequence[float]]], merge: str) -> list[float]:
    layers = list(zip(*(values for _, values in group), strict=True))
    return [max(layer) if merge == "max" else sum(layer) / len(layer) for layer in layers]


def _column_labels(labels: Sequence[str], step: float) -> str:
    stride = max(1, math.ceil(len(labels) / 8))
    spots = [(LEFT + (i + 0.5) * step, labels[i].split(" to ")[0]) for i in range(0, len(labels), stride)]
    return "".join(_text(x, HEIGHT - BOTTOM + 16, label, "tick middle") for x, label in spots)


def _frame(across: Scale, up: Scale, x: Axis, y: Axis) -> str:
    ticks = "".join(_text(across(v), HEIGHT - BOTTOM + 16, x.text(v), "tick middle") for v in across.ticks())
    return _grid(up, y) + ticks + _titles(x.label, y.label)


def _grid(up: Scale, y: Axis) -> str:
    parts = []
    for value in up.ticks():
        height = up(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(_text(LEFT - 6, height + 4, y.text(value), "tick end"))
    return "".join(parts)


def _titles(x: str, y: str) -> str:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'<text class="title middle" transform="translate(10 {middle:.0f}) rotate(-90)">{escape(y)}</text>'
    return _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x, "title middle") + turned


def _text(x: float, y: float, text: str, classes: str) -> str:
    return f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _legend(items: Iterable[tuple[str, str]]) -> str:
    """Return HTML of keys with their names."""
    entries = "".join(f"<li>{key}<span>{escape(name)}</span></li>" for key, name in items)
    return f'<ul class="legend">{entries}</ul>'


def _picture(label: str, body: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>'
