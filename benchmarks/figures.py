"""Draw the pictures of the README and of the site from benchmarks/results, in a light and a dark theme.

``python -m benchmarks.figures`` writes docs/figures/NAME-light.svg and NAME-dark.svg. The pictures have no date and no
random part: equal results give equal files, which a test holds against the files in docs/figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.dashboard import DASHBOARD, row_of
from benchmarks.svg import (
    DARK,
    LIGHT,
    Axis,
    Bar,
    Canvas,
    Curves,
    Panel,
    Point,
    Series,
    Theme,
    bars,
    curves,
    decimal,
    over_time,
    scatter,
)

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
QUALITY = Path(__file__).parent / "quality.json"
SCORERS = ("DistMult", "ComplEx", "TransE L2", "TransE L1", "RotatE")


def result(name: str) -> dict[str, dict[str, float]]:
    """Return the medians of a result file, row → column → value."""
    figures = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["figures"]
    return {row: {column: found["median"] for column, found in columns.items()} for row, columns in figures.items()}


def _count(value: float) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1000:g} k" if value >= 1000 else f"{value:g}"


def _rate(value: float, unit: str) -> str:
    return f"{value / 1000:.0f} k {unit}" if value >= 10_000 else f"{value:,.0f} {unit}"


def throughput(theme: Theme) -> Canvas:
    """Draw training and ranking speed beside PyKEEN's, on a logarithmic axis."""
    training, ranking = result("2026-12-01-sampled_training"), result("2026-11-21-evaluation")
    canvas = Canvas(760, 420, "Throughput of distkg and PyKEEN", theme)
    canvas.text(16, 24, "Throughput, two cores of an AMD EPYC (Zen 5, AVX-512), WN18RR, dim 256", size=14, weight=600)
    groups = []
    for scorer in SCORERS:
        rate, ratio = training[f"{scorer}, shared"]["triples/s"], training[f"{scorer}, shared"]["× PyKEEN"]
        peer = training[f"{scorer}, PyKEEN"]["triples/s"]
        ours = Bar("distkg", [rate], [theme.ours], f"{_rate(rate, 'triples/s')}  ({ratio:.0f} ×)")
        groups.append((scorer, [ours, Bar("PyKEEN", [peer], [theme.peer], _rate(peer, "triples/s"))]))
    rate, ratio = ranking["distkg, ranking"]["queries/s"], ranking["distkg, ranking"]["× PyKEEN"]
    names = {"plain PyTorch": "PyTorch", "PyKEEN": "PyKEEN"}
    peers = [
        Bar(shown, [ranking[row]["queries/s"]], [theme.peer], _rate(ranking[row]["queries/s"], "queries/s"))
        for row, shown in names.items()
    ]
    ours = Bar("distkg", [rate], [theme.ours], f"{_rate(rate, 'queries/s')}  ({ratio:.0f} ×)")
    groups.append(("exact ranking", [ours, *peers]))
    axis = Axis(200, 600, 10, 1_000_000, [10, 100, 1_000, 10_000, 100_000, 1_000_000], _count, log=True)
    below = bars(canvas, axis, 50, groups, "per second, logarithmic; training with 256 shared negatives per triple")
    canvas.text(16, below + 14, "In brackets: ratio to PyKEEN 1.11.1 in the same run.", size=11, color=theme.muted)
    return canvas


def message_passing(theme: Theme) -> Canvas:
    """Draw the time of one layer of relational messages beside DGL's, PyTorch Geometric's and plain PyTorch's."""
    rows = result("2026-12-01-message_passing")
    canvas = Canvas(760, 256, "Time of a layer of relational messages", theme)
    title = "One layer of relational messages over FB15k-237, batch of 8, two cores (Zen 5, AVX-512)"
    canvas.text(16, 24, title, size=14, weight=600)
    shown = {
        "distkg, batch 8": "distkg",
        "DGL u_mul_e_sum, batch 8": "DGL",
        "PyTorch Geometric, batch 8": "PyG",
        "gather, multiply, index_add, batch 8": "PyTorch",
    }
    groups = []
    for column, title in {"forward ms": "forward", "forward and backward ms": "with backward"}.items():
        group = [
            Bar(
                name,
                [rows[row][column]],
                [theme.ours if name == "distkg" else theme.peer],
                f"{rows[row][column]:,.0f} ms",
            )
            for row, name in shown.items()
        ]
        groups.append((title, group))
    axis = Axis(200, 640, 0, 2500, [0, 500, 1000, 1500, 2000, 2500], lambda value: f"{value:,.0f}")
    bars(canvas, axis, 50, groups, "milliseconds")
    return canvas


def memory(theme: Theme) -> Canvas:
    """Draw the peak memory of two workers, stacked, beside PyKEEN's one process."""
    rows = result("2026-11-21-memory")
    canvas = Canvas(760, 384, "Peak memory of two workers and of PyKEEN", theme)
    title = "Peak resident memory, WN18RR, dim 256, 256 negatives per triple"
    canvas.text(16, 24, title, size=14, weight=600)
    groups = []
    for row, name in {**{f"training {scorer}": scorer for scorer in SCORERS}, "evaluation DistMult": "ranking"}.items():
        both, largest = rows[row]["workers MB"], rows[row]["worker MB"]
        shared, peer = rows[row]["at end, shared once MB"], rows[row]["PyKEEN MB"]
        label = f"{both:,.0f} MB; {shared:,.0f} with shared pages once"
        ours = Bar("distkg", [largest, both - largest], [theme.ours, theme.extra], label)
        groups.append((name, [ours, Bar("PyKEEN", [peer], [theme.peer], f"{peer:,.0f} MB")]))
    axis = Axis(200, 640, 0, 3000, [0, 500, 1000, 1500, 2000, 2500, 3000], lambda value: f"{value:,.0f}")
    below = bars(canvas, axis, 50, groups, "MB")
    for x, color, text in (
        (200.0, theme.ours, "worker 1"),
        (280, theme.extra, "worker 2"),
        (360, theme.peer, "PyKEEN, one process"),
    ):
        canvas.box(x, below, 12, 12, color, radius=1.5)
        canvas.text(x + 17, below + 10.5, text, size=11, color=theme.muted)
    return canvas


def _quality_panel(data: str, measured: list[Point], **shape: Any) -> Panel:
    content = json.loads(QUALITY.read_text("utf-8"))
    sides = {
        ("WN18RR", "RotL", 10, False): "below right",
        ("WN18RR", "RotL", 10, True): "left",
        ("WN18RR", "ComplEx", 10, False): "above left",
        ("FB15k-237", "RotL", 4, False): "below right",
        ("FB15k-237", "RotL", 10, False): "above",
        ("FB15k-237", "RotL", 20, True): "above left",
        ("FB15k-237", "ComplEx", 15, False): "below",
        ("CoDEx-S", "RotE", 5, True): "below",
        ("CoDEx-S", "ComplEx", 5, False): "left",
    }
    ours, paper, best = list(measured), list[Point](), list[Point]()
    for row in (row for row in content["points"] if row["data"] == data):
        quoted, large = row["by"] != "distkg", row["model"] == "ComplEx"
        side = sides.get((data, row["model"], row["minutes"], quoted), "right")
        label = f"{'paper, ' if quoted else ''}{row['model']}{_dim(row) if large else ''} {decimal(row['mrr'])}"
        label += f" ({row['note']})" if "note" in row else ""
        (paper if quoted else best if large else ours).append(Point(row["minutes"], row["mrr"], label, side, quoted))
    references = [(row["mrr"], row["label"]) for row in content["references"] if row["data"] == data]
    title = f"{data}, dim {next(row['dim'] for row in content['points'] if row['data'] == data)}"
    return Panel(title, [ours, paper, best], references, **shape)


def _dim(row: Mapping[str, Any]) -> str:
    return f", dim {row['dim']},"


def quality(theme: Theme) -> Canvas:
    """Draw test MRR against the minutes of training, beside figures that papers and LibKGE publish."""
    wordnet = result("2026-11-21-hale_ablation-hale_wn18rr")["HaLE"]["MRR"]
    codex = result("2026-11-21-hale_ablation-hale_codex_s")["HaLE"]["MRR"]
    panels = [
        _quality_panel(
            "WN18RR",
            [Point(100 / 60, wordnet, f"RotL {decimal(wordnet)}")],
            x_high=16,
            y=(0.42, 0.5),
            x_ticks=[0, 5, 10, 15],
            y_ticks=[0.42, 0.44, 0.46, 0.48, 0.50],
        ),
        _quality_panel(
            "FB15k-237",
            [],
            x_high=22,
            y=(0.3, 0.4),
            x_ticks=[0, 5, 10, 15, 20],
            y_ticks=[0.3, 0.32, 0.34, 0.36, 0.38, 0.4],
        ),
        _quality_panel(
            "CoDEx-S",
            [Point(30 / 60, codex, f"RotE {decimal(codex)}", "below right")],
            x_high=9,
            y=(0.38, 0.5),
            x_ticks=[0, 2, 4, 6, 8],
            y_ticks=[0.38, 0.4, 0.42, 0.44, 0.46, 0.48, 0.5],
        ),
    ]
    canvas = Canvas(980, 372, "Test MRR against minutes of training", theme)
    canvas.text(16, 24, "Test MRR against minutes of training", size=14, weight=600)
    for number, panel in enumerate(panels):
        scatter(canvas, panel, 52 + number * 316, 76, 272, 212)
    canvas.dot(22, 354, 4.5, theme.ours, theme.ours)
    canvas.text(34, 358, "distkg: two cores of an AMD EPYC (Zen 5, AVX-512), no GPU", size=11, color=theme.muted)
    canvas.dot(398, 354, 4.5, "none", theme.quoted)
    canvas.text(410, 358, "quoted: HaLE's paper, on a GTX 1070", size=11, color=theme.muted)
    canvas.line(640, 354, 668, 354, theme.quoted, dash="5 4")
    canvas.text(676, 358, "quoted: published without a time, larger dims", size=11, color=theme.muted)
    return canvas


MRR_RUN = "2026-12-01-time_to_mrr"
"""Results of ``time_to_mrr``, without the name of the graph's store."""

MRR_GRAPHS = {
    "codex_s": ("CoDEx-S", (0.2, 0.5)),
    "wn18rr": ("WN18RR", (0.2, 0.5)),
    "fb15k237": ("FB15k-237", (0.15, 0.36)),
}
MINUTES = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


def time_to_mrr(theme: Theme) -> Canvas:
    """Draw validation MRR against the minutes since the command, of distkg, plain PyTorch and PyKEEN."""
    canvas = Canvas(980, 372, "Validation MRR against minutes since the command", theme)
    canvas.text(16, 24, "Validation MRR against minutes since the command, with its start", size=14, weight=600)
    colors = {"distkg": theme.ours, "distkg, sampled": theme.extra, "plain PyTorch": theme.quoted, "PyKEEN": theme.peer}
    for number, (store, (name, heights)) in enumerate(MRR_GRAPHS.items()):
        settings = json.loads((RESULTS / f"{MRR_RUN}-{store}.json").read_text("utf-8"))["settings"]
        series = [
            (color, [(minutes, mrr) for minutes, _, mrr in repetition])
            for row, color in colors.items()
            for repetition in settings["curves"].get(row, [])
        ]
        low, high = MINUTES[0], max([settings["minutes"], *(points[-1][0] for _, points in series if points)])
        ticks = [tick for tick in MINUTES if tick <= high]
        left = 52 + number * 316
        axis = Axis(left, left + 272, low, high, ticks, lambda tick: f"{tick:g}", log=True)
        curves(
            canvas,
            Curves(name, series, axis, heights, [heights[0], *settings["targets"]]),
            76,
            212,
            "minutes, logarithmic",
        )
    for x, (row, color) in zip((16, 86, 206, 312), colors.items(), strict=True):
        canvas.box(x, 347, 12, 12, color, radius=1.5)
        canvas.text(x + 17, 357.5, row, size=11, color=theme.muted)
    note = "Two cores, no GPU. Lines across are the targets; a curve ends at the last of them, or at its limit."
    canvas.text(396, 357.5, note, size=11, color=theme.muted)
    return canvas


def system(theme: Theme) -> Canvas:
    """Draw what runs where: stores, Ray Train workers, the actor pool, Ray Tune, checkpoints, and what reads them."""
    canvas = Canvas(900, 400, "How distkg runs on Ray", theme)

    def labelled(x: float, y: float, width: float, height: float, lines: list[str], *, stroke: str = "") -> None:
        canvas.box(x, y, width, height, theme.panel, stroke=stroke or theme.grid, radius=7)
        first = y + height / 2 + 4.5 - 8.5 * (len(lines) - 1)
        for number, line in enumerate(lines):
            weight, color = (600, theme.text) if number == 0 else (400, theme.muted)
            size = 13 if number == 0 else 11.5
            canvas.text(
                x + width / 2, first + 17 * number, line, size=size, color=color, anchor="middle", weight=weight
            )

    labelled(16, 150, 122, 92, ["Facts", "TSV, CSV, Parquet,", "RDF; texts,", "numbers, images"])
    labelled(172, 150, 122, 92, ["Graph store", "Parquet files", "and a manifest", "with checksums"])
    canvas.arrow([(138, 196), (170, 196)], theme.muted)
    canvas.arrow([(294, 196), (334, 196)], theme.muted)

    canvas.box(336, 20, 330, 360, "none", stroke=theme.muted, radius=10)
    canvas.text(501, 42, "Ray Tune and Optuna: each trial is such a run", size=12, color=theme.muted, anchor="middle")
    canvas.box(350, 54, 302, 180, theme.panel, stroke=theme.ours, radius=8)
    canvas.text(501, 75, "Ray Train: data-parallel workers", size=13, anchor="middle", weight=600)
    for number, name in enumerate(("worker 1", "worker 2", "worker N")):
        x = 366 + number * 95
        canvas.box(x, 88, 80, 98, "none", stroke=theme.grid, radius=6)
        canvas.text(x + 40, 105, name, size=12, anchor="middle", weight=600)
        for row in range(4):
            canvas.box(x + 12, 113 + row * 9, 56, 7, theme.ours if number != 1 else theme.extra, radius=1.5)
        canvas.text(x + 40, 164, "its part of the", size=10.5, color=theme.muted, anchor="middle")
        canvas.text(x + 40, 178, "entity table", size=10.5, color=theme.muted, anchor="middle")
    for gap in (447.5, 542.5):
        canvas.arrow([(gap, 131), (gap + 12, 131)], theme.muted, both=True)
    canvas.text(501, 207, "rows travel to the worker that needs them,", size=11, color=theme.muted, anchor="middle")
    canvas.text(501, 222, "gradients travel back to their owner", size=11, color=theme.muted, anchor="middle")

    canvas.box(350, 294, 302, 72, theme.panel, stroke=theme.quoted, radius=8)
    canvas.text(501, 317, "Ray actors: negative sampling", size=13, anchor="middle", weight=600)
    canvas.text(501, 335, "negatives by model, neighbourhood, diffusion;", size=11, color=theme.muted, anchor="middle")
    canvas.text(501, 350, "relation mining; ahead of the step", size=11, color=theme.muted, anchor="middle")
    canvas.arrow([(400, 236), (400, 292)], theme.muted)
    canvas.text(408, 268, "queries, vectors", size=11, color=theme.muted)
    canvas.arrow([(572, 292), (572, 236)], theme.muted)
    canvas.text(580, 268, "negatives", size=11, color=theme.muted)

    canvas.arrow([(652, 146), (700, 146)], theme.muted)
    labelled(
        702,
        96,
        182,
        92,
        ["Checkpoints", "by range of rows: any", "number of workers resumes;", "checksums, atomic commit"],
    )
    canvas.arrow([(793, 188), (793, 226)], theme.muted)
    labelled(702, 228, 182, 108, ["Predictions", "exact filtered evaluation", "predict, explain", "export, reports"])
    return canvas


def _value(value: float, unit: str) -> str:
    """Write a value in a unit of Grafana's."""
    if unit == "percentunit":
        return f"{100 * value:.0f} %"
    if unit == "s":
        return f"{value:.0f} s"
    scaled, letter = next(((value / size, name) for size, name in _SIZES if value >= size), (value, ""))
    suffix = {"bytes": "B", "Bps": "B/s", "rowsps": "/s", "reqps": "/s"}.get(unit, "")
    digits = 0 if scaled >= 10 or float(scaled).is_integer() else 2 if scaled < 1 else 1
    return f"{scaled:.{digits}f} {letter}{suffix}".rstrip()


_SIZES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
DASHBOARD_RUN = "2026-11-30-dashboard"


def monitoring(theme: Theme) -> Canvas:
    """Draw the panels of the Grafana dashboard with the values that Prometheus gave for them."""
    series: dict[str, list[Series]] = {}
    figures = json.loads((RESULTS / f"{DASHBOARD_RUN}.json").read_text("utf-8"))["figures"]
    for row, columns in figures.items():
        panel, _, line = row.rpartition(": ")
        points = zip(columns["minute"]["repetitions"], columns["value"]["repetitions"], strict=True)
        series.setdefault(panel, []).append(Series(line, list(points)))
    minutes = max(point[0] for lines in series.values() for line in lines for point in line.points)
    column, unit_height, top = 41, 21, 34
    canvas = Canvas(1000, top + 50 * unit_height + 6, "Panels of the dashboard over a run", theme)
    canvas.text(16, 22, "Panels of the dashboard over a run, by minute", size=14, weight=600)
    for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
        x, y = 8 + panel["gridPos"]["x"] * column, top + panel["gridPos"]["y"] * unit_height
        width, height = panel["gridPos"]["w"] * column - 6, panel["gridPos"]["h"] * unit_height - 6
        if panel["type"] == "row":
            canvas.text(x, y + 14, panel["title"], size=12, weight=600)
            continue
        unit, lines = panel["fieldConfig"]["defaults"]["unit"], series.get(row_of(panel).rpartition(": ")[0], [])
        canvas.box(x, y, width, height, theme.panel, radius=4)
        canvas.text(x + 8, y + 15, panel["title"], size=11, weight=600)
        if panel["type"] == "stat":
            newest = _value(lines[0].points[-1][1], unit) if lines else "no data"
            canvas.text(x + width / 2, y + 52, newest, size=24, color=theme.ours, anchor="middle", weight=600)
        elif lines:
            over_time(canvas, lines, (x + 52, y + 26, width - 66, height - 62), minutes, partial(_value, unit=unit))
        else:
            canvas.text(x + width / 2, y + height / 2, "no data", color=theme.muted, anchor="middle")
    return canvas


PICTURES: dict[str, Callable[[Theme], Canvas]] = {
    "system": system,
    "quality": quality,
    "time-to-mrr": time_to_mrr,
    "throughput": throughput,
    "message-passing": message_passing,
    "memory": memory,
    "monitoring": monitoring,
}


def drawn() -> dict[str, str]:
    """Return every picture, file name → SVG."""
    return {f"{name}-{theme.name}.svg": draw(theme).svg() for name, draw in PICTURES.items() for theme in (LIGHT, DARK)}


def main() -> None:
    """Write every picture to docs/figures."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name, svg in drawn().items():
        (FIGURES / name).write_text(svg, "utf-8")
        print(FIGURES / name)


if __name__ == "__main__":
    main()
