"""``comparison.html``: a page that compares several runs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distkg.data.storage.working_copy import shown
from distkg.reporting import curves, html, sections
from distkg.reporting.curves import Named
from distkg.reporting.html import GAP, Cell, Content
from distkg.reporting.page import page, write_page
from distkg.reporting.quantities import decimal_size, duration, score
from distkg.reporting.run_record import RunError, RunRecord, as_text, reach, read_run

DEFAULT = Path("comparison.html")


@dataclass(frozen=True)
class Figure:
    """Column of the comparison table.

    Attributes:
        name: heading of the column.
        find: function that returns the value of a run, or None if the run lacks it.
        text: formatter of the value.
        best: function that picks the best of several values; None if no value is better than another.
    """

    name: str
    find: Callable[[RunRecord], float | None]
    text: Callable[[float], str]
    best: Callable[[Iterable[float]], float] | None


def write_comparison(folders: Sequence[Path], to: Path | None = None) -> Path:
    """Write a page about several runs and return its path: ``to``, or ``comparison.html`` in the working directory.

    Unfinished runs are shown with the results so far.

    Raises:
        RunError: a folder is not a run or is named twice, or a file of a run cannot be read.
        NotAFileError: ``to`` is a folder, device, pipe or socket.
    """
    names = distinct_names([Path(shown(folder)) for folder in folders])
    runs = [(name, read_run(Path(folder))) for name, folder in zip(names, folders, strict=True)]
    return write_page(to or DEFAULT, render(runs))


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return the names of folders; equal names are prefixed with as many parents as make them distinct.

    >>> distinct_names([Path("/a/umls"), Path("/b/umls"), Path("/b/kinship")])
    ['a/umls', 'b/umls', 'kinship']

    Raises:
        RunError: the same folder is named twice.
    """
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    _refuse_repeated(parts)
    depths = [1] * len(parts)
    while True:
        names = [Path(*path[-depth:]).as_posix() for path, depth in zip(parts, depths, strict=True)]
        count = Counter(names)
        if len(count) == len(names):
            return names
        depths = [depth + (count[name] > 1) for depth, name in zip(depths, names, strict=True)]


def render(runs: Sequence[Named]) -> str:
    """Return the page as a string; ``runs`` are pairs of name and record."""
    heading = f"Comparison of {len(runs)} runs"
    parts = (figures(runs), *_charts(runs), differences(runs))
    return page(heading, heading, _shared_subject(runs), _warnings(runs), html.grid(parts))


def figures(runs: Sequence[Named]) -> str:
    """Return the card of test metrics, time and memory: one row per run, with the best of each column marked."""
    columns = [_column(figure, [run for _, run in runs]) for figure in FIGURES]
    rows = [[_name_cell(i, *runs[i]), *cells] for i, cells in enumerate(zip(*columns, strict=True))]
    note = (
        "Filtered ranks among all entities on the test split. Marked: the best of the runs that have finished. To best "
        "validation: time until validation MRR was highest. Memory: the largest worker. Click a heading to sort."
    )
    header = ["Run", *(figure.name for figure in FIGURES)]
    return html.card(
        "Test metrics, time and memory", html.table(header, rows, sortable=True, classes="dense"), note, wide=True
    )


def differences(runs: Sequence[Named]) -> str:
    """Return the card of configuration keys whose values differ between the runs that have a configuration."""
    known = [(name, flatten(run.config)) for name, run in runs if run.config]
    keys = dict.fromkeys(key for _, values in known for key in values)
    values_by_key = [(key, [values.get(key, GAP) for _, values in known]) for key in keys]
    rows = [[key, *values] for key, values in values_by_key if len(set(values)) > 1]
    table = html.table(["Key", *(name for name, _ in known)], rows, classes="mono")
    note = "Keys with equal values are left out." if rows else "The configurations are equal."
    return html.card("Configuration: what differs", table or "<p></p>", note, wide=True) if len(known) > 1 else ""


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return dotted keys of nested sections, with their values as text.

    >>> flatten({"model": {"name": "transe", "options": {"norm": "l1"}}})
    {'model.name': 'transe', 'model.options.norm': 'l1'}
    """
    values_by_key: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            values_by_key |= flatten(value, f"{prefix}{key}.")
        else:
            values_by_key[f"{prefix}{key}"] = as_text(value)
    return values_by_key


def _charts(runs: Sequence[Named]) -> list[str]:
    objectives = {flatten(run.config).get("objective.name") for _, run in runs if run.config}
    note = "The runs minimise different objectives, so their losses cannot be compared." if len(objectives) > 1 else ""
    return [
        curves.by_wall_time(runs, curves.VALID_MRR),
        curves.by_epoch(runs, curves.VALID_MRR),
        curves.by_wall_time(runs, curves.VALID_HITS10),
        curves.by_epoch(runs, curves.VALID_HITS10),
        curves.by_wall_time(runs, curves.LOSS, note),
        curves.by_epoch(runs, curves.LOSS, note),
    ]


def _column(figure: Figure, runs: Sequence[RunRecord]) -> list[Content]:
    values = [figure.find(run) for run in runs]
    rated = [value for value, run in zip(values, runs, strict=True) if run.finished]
    best = _best(figure, rated) if len(_graphs(runs)) < 2 else None
    return [
        GAP if value is None else Cell(figure.text(value), value, run.finished and figure.text(value) == best)
        for value, run in zip(values, runs, strict=True)
    ]


def _best(figure: Figure, values: Sequence[float | None]) -> str | None:
    """Return the best value as text, which several runs may share; None if all values are equal or none is better."""
    known = [value for value in values if value is not None]
    if figure.best is None or len({figure.text(value) for value in known}) < 2:
        return None
    return figure.text(figure.best(known))


def _name_cell(index: int, name: str, run: RunRecord) -> Cell:
    return Cell(name, series=index, badge="" if run.finished else "not finished")


def _shared_subject(runs: Sequence[Named]) -> list[str]:
    first, *others = (sections.subject(run) for _, run in runs)
    return [part for part in first if all(part in other for other in others)]


def _warnings(runs: Sequence[Named]) -> list[str]:
    texts = [f"{name}: {text}" for name, run in runs for text in (*_missing(run), *sections.damage(run))]
    graphs = _graphs(run for _, run in runs)
    if len(graphs) > 1:
        listed = " / ".join(graph.rstrip(".") for graph in graphs)
        texts.append(
            f"The runs are on different graphs, so their ranks cannot be compared; no best is marked. {listed}."
        )
    return texts


def _missing(run: RunRecord) -> list[str]:
    texts = []
    if not run.finished:
        texts.append(
            "not finished, as there is no result.json. It has no test metrics yet; time and memory are those so far "
            "and are not marked as best."
        )
    if not run.config:
        texts.append("there is no config.yaml; its configuration is not compared.")
    return texts


def _graphs(runs: Iterable[RunRecord]) -> list[str]:
    """Return the distinct graphs of the runs by their sizes, because stores of one graph may have several addresses."""
    graphs = [run.result.get("graph") for run in runs]
    return list(dict.fromkeys(sections.counts(graph) for graph in graphs if isinstance(graph, dict)))


def _refuse_repeated(paths: Sequence[tuple[str, ...]]) -> None:
    for path, times in Counter(paths).items():
        if times > 1:
            raise RunError(f"the run folder {str(Path(*path))!r} is given {times} times; give each run once")


def _metric(key: str) -> Callable[[RunRecord], float | None]:
    return lambda run: reach(run.result, f"metrics.test.{key}")


def _training_seconds(run: RunRecord) -> float | None:
    if run.finished:
        return reach(run.result, "train.seconds")
    return max((time for time, _ in run.column("time", "time")), default=None)


def _seconds_to_best(run: RunRecord) -> float | None:
    validations = run.column("valid.mrr", "time")
    return max(validations, key=lambda point: point[1])[0] if validations else None


def _peak_memory(run: RunRecord) -> float | None:
    so_far = [1e6 * peak for _, peak in run.column("peak_rss_mb", "step")]
    return max(run.peak_memory() or so_far, default=None)


def _workers(run: RunRecord) -> float | None:
    trained = reach(run.result, "train.workers")
    return trained if trained is not None else reach(run.config, "train.workers")


FIGURES = (
    Figure("MRR", _metric("mrr"), score, max),
    Figure("Hits@1", _metric("hits@1"), score, max),
    Figure("Hits@3", _metric("hits@3"), score, max),
    Figure("Hits@10", _metric("hits@10"), score, max),
    Figure("Mean rank", _metric("mean_rank"), "{:,.1f}".format, min),
    Figure("Training", _training_seconds, duration, min),
    Figure("To best validation", _seconds_to_best, duration, min),
    Figure("Peak memory", _peak_memory, decimal_size, min),
    Figure("Workers", _workers, "{:.0f}".format, None),
)
