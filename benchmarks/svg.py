"""Standalone SVG pictures in a light and a dark theme: text, shapes, bar charts and scatter plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Theme:
    """Colours of a picture; the background is the page's.

    Attributes:
        name: part of the file's name.
        text: labels.
        muted: axes and notes.
        grid: lines behind marks.
        panel: fill of boxes.
        ours: marks of distkg.
        peer: marks of other systems.
        quoted: marks of figures that papers publish.
        extra: a second colour of distkg's marks.
    """

    name: str
    text: str
    muted: str
    grid: str
    panel: str
    ours: str
    peer: str
    quoted: str
    extra: str


LIGHT = Theme("light", "#1f2328", "#59636e", "#d1d9e0", "#f6f8fa", "#3451b2", "#a0a7b0", "#c2570c", "#9db2f2")
DARK = Theme("dark", "#e6edf3", "#9198a1", "#3d444d", "#1a2029", "#8ea8ff", "#6e7681", "#ffa657", "#41558f")


class Canvas:
    """Collects the elements of one picture."""

    def __init__(self, width: int, height: int, title: str, theme: Theme) -> None:
        self.theme = theme
        self._size, self._title, self._elements = (width, height), title, list[str]()

    def text(
        self,
        x: float,
        y: float,
        content: str,
        *,
        size: float = 12,
        color: str = "",
        anchor: str = "start",
        weight: int = 400,
    ) -> None:
        """Write one line; y is its baseline."""
        style = f'font-size="{size:g}" fill="{color or self.theme.text}" text-anchor="{anchor}" font-weight="{weight}"'
        self._elements.append(f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(content)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, color: str, *, width: float = 1, dash: str = "") -> None:
        """Draw a straight line."""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        self._elements.append(f'<line {ends} stroke="{color}" stroke-width="{width:g}"{dashed}/>')

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, *, stroke: str = "none", radius: float = 0
    ) -> None:
        """Draw a rectangle."""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" rx="{radius:g}"'
        self._elements.append(f'<rect {place} fill="{fill}" stroke="{stroke}"/>')

    def dot(self, x: float, y: float, radius: float, fill: str, stroke: str) -> None:
        """Draw a circle."""
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"'
        self._elements.append(f'<circle {place} fill="{fill}" stroke="{stroke}" stroke-width="2"/>')

    def arrow(self, points: Sequence[tuple[float, float]], color: str, *, both: bool = False) -> None:
        """Draw a line through points with a head at its end, or at both ends."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._elements.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        self._head(points[-2], points[-1], color)
        if both:
            self._head(points[1], points[0], color)

    def _head(self, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
        angle = math.atan2(end[1] - start[1], end[0] - start[0])
        corners = [end] + [
            (end[0] - 8 * math.cos(angle + turn), end[1] - 8 * math.sin(angle + turn)) for turn in (0.42, -0.42)
        ]
        self._elements.append(f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in corners)}" fill="{color}"/>')

    def path(self, points: Sequence[tuple[float, float]], color: str) -> None:
        """Draw a line through points."""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._elements.append(f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="1.5"/>')

    def svg(self) -> str:
        """Return the picture as the text of an SVG file."""
        width, height = self._size
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        head += f'height="{height}" role="img" font-family="{FONT}">\n<title>{escape(self._title)}</title>'
        return "\n".join([head, *self._elements, "</svg>\n"])


@dataclass(frozen=True)
class Bar:
    """One bar: who it belongs to, its length as one value or as stacked parts, and what stands beside it."""

    name: str
    parts: Sequence[float]
    colors: Sequence[str]
    label: str


@dataclass(frozen=True)
class Axis:
    """A horizontal axis: pixels from ``left`` to ``right``, values from ``low`` to ``high``, ticks in order."""

    left: float
    right: float
    low: float
    high: float
    ticks: Sequence[float]
    text: Callable[[float], str]
    log: bool = False

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, at = (math.log10(x) if self.log else x for x in (self.low, self.high, max(value, self.low)))
        return self.left + (self.right - self.left) * (at - low) / (high - low)


def bars(canvas: Canvas, axis: Axis, top: float, groups: Sequence[tuple[str, Sequence[Bar]]], unit: str) -> float:
    """Draw groups of horizontal bars and their axis; return the y below both."""
    thickness, between = 15.0, 12.0
    bottom = top + sum(len(group) * (thickness + 2) + between for _, group in groups)
    for tick in axis.ticks:
        x = axis.place(tick)
        canvas.line(x, top - 4, x, bottom - 4, canvas.theme.grid)
        canvas.text(x, bottom + 11, axis.text(tick), size=11, color=canvas.theme.muted, anchor="middle")
    canvas.text((axis.left + axis.right) / 2, bottom + 28, unit, size=11, color=canvas.theme.muted, anchor="middle")
    y = top
    for title, group in groups:
        middle = y + len(group) * (thickness + 2) / 2 + 3
        canvas.text(axis.left - 92, middle, title, size=12, anchor="end", weight=600)
        for bar in group:
            canvas.text(axis.left - 8, y + 11.5, bar.name, size=11, color=canvas.theme.muted, anchor="end")
            start, total = axis.left, 0.0
            for part, color in zip(bar.parts, bar.colors, strict=True):
                total += part
                end = axis.place(total)
                canvas.box(start, y, end - start - (1 if len(bar.parts) > 1 else 0), thickness, color, radius=1.5)
                start = end
            canvas.text(start + 6, y + 11.5, bar.label, size=11)
            y += thickness + 2
        y += between
    return bottom + 40


@dataclass(frozen=True)
class Point:
    """One point of a scatter plot, with the text beside it and where that stands: ``right``, ``below right``, …"""

    x: float
    y: float
    label: str
    side: str = "right"
    quoted: bool = False


@dataclass(frozen=True)
class Panel:
    """One scatter plot.

    Attributes:
        title: above it.
        lines: groups of points of one model; those of distkg are joined.
        references: (value, label) of published figures without a time, drawn as dashed lines.
        x_high: end of the horizontal axis, which begins at 0.
        y: ends of the vertical axis.
        x_ticks, y_ticks: values with a label.
    """

    title: str
    lines: Sequence[Sequence[Point]]
    references: Sequence[tuple[float, str]]
    x_high: float
    y: tuple[float, float]
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]


def decimal(value: float, digits: int = 3) -> str:
    """Write a share as papers do, without the leading 0."""
    return f"{value:.{digits}f}".removeprefix("0")


def scatter(canvas: Canvas, panel: Panel, x: float, y: float, width: float, height: float) -> None:
    """Draw one scatter plot into a rectangle."""
    theme, low, high = canvas.theme, *panel.y

    def across(value: float) -> float:
        return x + width * value / panel.x_high

    def down(value: float) -> float:
        return y + height * (high - value) / (high - low)

    canvas.text(x, y - 16, panel.title, size=13, weight=600)
    for tick in panel.y_ticks:
        canvas.line(x, down(tick), x + width, down(tick), theme.grid)
        canvas.text(x - 6, down(tick) + 4, decimal(tick, 2), size=11, color=theme.muted, anchor="end")
    for tick in panel.x_ticks:
        canvas.text(across(tick), y + height + 16, f"{tick:g}", size=11, color=theme.muted, anchor="middle")
    canvas.line(x, y + height, x + width, y + height, theme.muted)
    canvas.text(x + width / 2, y + height + 34, "minutes of training", size=11, color=theme.muted, anchor="middle")
    for value, label in panel.references:
        canvas.line(x, down(value), x + width, down(value), theme.quoted, dash="5 4")
        canvas.text(x + 4, down(value) - 5, label, size=10.5, color=theme.quoted)
    for points in panel.lines:
        for one, other in pairwise(points):
            canvas.line(across(one.x), down(one.y), across(other.x), down(other.y), theme.ours, width=1.5)
    for point in (point for points in panel.lines for point in points):
        _mark(canvas, point, across(point.x), down(point.y))


def _mark(canvas: Canvas, point: Point, x: float, y: float) -> None:
    theme = canvas.theme
    color = theme.quoted if point.quoted else theme.ours
    canvas.dot(x, y, 4.5, "none" if point.quoted else color, color)
    dx, dy, anchor = {
        "right": (9, 4, "start"),
        "left": (-9, 4, "end"),
        "above": (0, -10, "middle"),
        "below": (0, 18, "middle"),
        "below right": (4, 18, "start"),
        "above left": (8, -10, "end"),
    }[point.side]
    canvas.text(x + dx, y + dy, point.label, size=11, color=color, anchor=anchor)


@dataclass(frozen=True)
class Series:
    """One line over time: its name, and (minute, value) in order."""

    name: str
    points: Sequence[tuple[float, float]]


def over_time(
    canvas: Canvas,
    series: Sequence[Series],
    place: tuple[float, float, float, float],
    minutes: float,
    text: Callable[[float], str],
) -> None:
    """Draw lines over time, their names below, into a rectangle (x, y, width, height); values begin at 0."""
    theme, (x, y, width, height) = canvas.theme, place
    high = max((value for line in series for _, value in line.points), default=0) or 1

    def across(minute: float) -> float:
        return x + width * min(minute / minutes, 1)

    def down(value: float) -> float:
        return y + height * (1 - max(value, 0) / high)

    for share in (0, 0.5, 1):
        canvas.line(x, down(share * high), x + width, down(share * high), theme.grid)
        canvas.text(x - 5, down(share * high) + 3.5, text(share * high), size=9.5, color=theme.muted, anchor="end")
    for minute in range(math.floor(minutes) + 1):
        canvas.text(across(minute), y + height + 13, f"{minute}", size=9.5, color=theme.muted, anchor="middle")
    colors = (theme.ours, theme.quoted, theme.extra, theme.peer, theme.text, theme.muted)
    below = x
    for line, color in zip(series, colors, strict=False):
        canvas.path([(across(minute), down(value)) for minute, value in line.points], color)
        canvas.box(below, y + height + 20, 8, 8, color, radius=1.5)
        canvas.text(below + 11, y + height + 27.5, line.name, size=9.5, color=theme.muted)
        below += 22 + 5.2 * len(line.name)


@dataclass(frozen=True)
class Curves:
    """One plot of curves over a logarithmic axis.

    Attributes:
        title: above it.
        series: (colour, points) of each curve, with x above 0.
        across: horizontal axis; its pixels are those of the plot.
        heights: ends of the vertical axis; what is below the first is drawn on it.
        levels: values of the vertical axis with a line and a label.
    """

    title: str
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]]
    across: Axis
    heights: tuple[float, float]
    levels: Sequence[float]


def curves(canvas: Canvas, plot: Curves, top: float, height: float, unit: str) -> None:
    """Draw one plot of curves from ``top`` down; a dot marks the last point of each."""
    theme, x = canvas.theme, plot.across
    y = Axis(top + height, top, *plot.heights, plot.levels, lambda value: decimal(value, 2))
    canvas.text(x.left, top - 16, plot.title, size=13, weight=600)
    for level in y.ticks:
        canvas.line(x.left, y.place(level), x.right, y.place(level), theme.grid)
        canvas.text(x.left - 6, y.place(level) + 4, y.text(level), size=11, color=theme.muted, anchor="end")
    for tick in x.ticks:
        canvas.line(x.place(tick), top + height, x.place(tick), top + height + 4, theme.muted)
        canvas.text(x.place(tick), top + height + 17, x.text(tick), size=11, color=theme.muted, anchor="middle")
    canvas.line(x.left, top + height, x.right, top + height, theme.muted)
    canvas.text((x.left + x.right) / 2, top + height + 35, unit, size=11, color=theme.muted, anchor="middle")
    for color, points in plot.series:
        places = [(x.place(at), y.place(value)) for at, value in points]
        canvas.path(places, color)
        for end in places[-1:]:
            canvas.dot(*end, 3.5, color, color)
