"""``report.html`` of a search: history, rungs or front, parameter importance and all trials; and its output in the
terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from rich.table import Table

from distkg.config import RunConfig
from distkg.data.storage.working_copy import name_of
from distkg.printable import printable
from distkg.printable import printable_html as escape
from distkg.reporting import curves, html
from distkg.reporting.html import GAP, Cell, Content
from distkg.reporting.page import page, write_page
from distkg.reporting.quantities import compact, decimal_size, duration, score
from distkg.reporting.run_record import RunError, as_text, read_run
from distkg.reporting.search_methods import (
    VALID_MRR,
    by_number,
    front_cards,
    parameter_cell,
    rungs_card,
    rungs_history,
    whole_number,
)
from distkg.reporting.sections import graphs_named
from distkg.reporting.svg import STYLES, Axis, Series, line_chart, scatter
from distkg.reporting.tables import text_table
from distkg.search.method import Method
from distkg.search.search_folder import SearchFolder, differences
from distkg.search.space import (
    Choice,
    Distribution,
    Interval,
    Space,
    describe_parameters,
    describe_value,
    with_parameters,
)
from distkg.search.trials import Trial, best_trial

STATES = ("finished", "pruned", "failed")


@dataclass(frozen=True)
class SearchRecord:
    """Results of a search so far: its folder, the configuration shared by all trials, the search space, and the
    trials in order of their starts; and its method."""

    folder: Path
    config: RunConfig
    space: Space
    trials: list[Trial]
    method: Method = field(default_factory=Method)

    @property
    def best(self) -> Trial | None:
        """Trial of best.yaml."""
        return best_trial(self.trials)

    @property
    def sampled(self) -> list[Trial]:
        """Trials whose parameters Optuna proposed and whose scores may be compared: those of the first rung, or all."""
        return [trial for trial in self.trials if trial.rung in (None, 1)]

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        """Keys whose values differ between the base and the best trial: (key, base, best)."""
        if self.best is None:
            return []
        changes = differences(self.config, with_parameters(self.config, self.best.parameters))
        return [(key, as_text(before), as_text(after)) for key, before, after in changes]


def is_search(folder: Path) -> bool:
    """Return whether `distkg tune` wrote this folder."""
    return SearchFolder(folder).space.is_file()


def read_search(folder: Path) -> SearchRecord:
    """Read the folder of a search.

    Raises:
        RunError: it is not the folder of a search.
        ConfigError, SpaceError, SearchError: its configuration, its space or its method cannot be read.
    """
    files = SearchFolder(Path(folder))
    if not is_search(files.path):
        raise RunError(f"{str(folder)!r} is no search: it holds no space.yaml. Give the folder named by `distkg tune`.")
    trials = sorted(files.ended(), key=lambda trial: trial.number)
    return SearchRecord(files.path, files.read_config().redacted(), files.read_space(), trials, files.read_method())


def write_search_report(folder: Path, to: Path | None = None) -> Path:
    """Write the page of a search and return its path: ``to``, or ``report.html`` in its folder.

    Raises:
        RunError, ConfigError, SpaceError, SearchError: as `read_search`.
        NotAFileError: ``to`` is a folder, device, pipe or socket.
    """
    record = read_search(folder)
    return write_page(to or record.folder / "report.html", render(record, importances(record)))


def importances(record: SearchRecord) -> dict[str, float]:
    """Return the importance of each parameter for good trials; empty with too few trials, or without Optuna."""
    try:
        from distkg.cluster.search import study
    except ImportError:
        return {}
    return study.importances(record.space, record.sampled)


def render(record: SearchRecord, importance: Mapping[str, float]) -> str:
    """Return the page as a string; ``importance`` by key, most important first."""
    name = name_of(record.folder)
    config = record.config
    graphs = graphs_named(config.data.store, config.data.graphs)
    subject = [config.model.name, config.objective.name, graphs, _keys(record)]
    ended = html.badge(f"{len(record.trials)} trials", done=record.best is not None)
    parts = (
        _best_configuration(record),
        *(front_cards(record.trials, record.method.against, list(record.space)) if record.method.against else ()),
        rungs_card(record.trials, record.method.rungs) if record.method.rungs else "",
        rungs_history(record.trials, record.method.rungs) if record.method.rungs else _history(record.trials),
        _importances(importance),
        *(_slice(record.sampled, key, record.space[key]) for key in _ordered(record.space, importance)),
        _best_runs(record),
        _table(record),
        _failures(record.trials),
    )
    tiles = f'<div class="tiles">{html.tiles(_headline(record))}</div>' if record.trials else ""
    warnings = [] if record.trials else ["No trial has ended yet."]
    return page(name, f"{escape(name)} {ended}", subject, warnings, tiles + html.grid(parts))


def trial_line(trial: Trial, total: int, trials: Sequence[Trial]) -> str:
    """Return a line of progress with the trial that ended, and the best trial so far."""
    figure = GAP if trial.valid_mrr is None else score(trial.valid_mrr)
    best = best_trial(trials)
    held = f"  best {score(best.value)} (trial {best.number})" if best is not None else ""
    spent = f"{trial.epochs:.3g} epochs, {duration(trial.seconds)}"
    rung = f" in rung {trial.rung}" if trial.rung is not None else ""
    text = f"{len(trials)}/{total}  trial {trial.number}{rung} {trial.state:<8}  valid MRR {figure}  {spent}{held}"
    details = [describe_parameters(trial.parameters), *([trial.error] if trial.error else [])]
    return "\n      ".join([text, *map(printable, details)])


def changes_table(record: SearchRecord) -> Table:
    """Return a table of the keys whose values differ between the base and the best configuration."""
    best = record.best
    title = f"Best: trial {best.number}, validation MRR {score(best.value)}" if best is not None else ""
    return text_table(["key", "CONFIG", "best"], record.changes, title)


def _keys(record: SearchRecord) -> str:
    return f"{len(record.space)} keys searched"


def _ordered(space: Space, importance: Mapping[str, float]) -> list[str]:
    return sorted(space, key=lambda key: -importance.get(key, 0.0))


def _headline(record: SearchRecord) -> list[tuple[str, str, str]]:
    trials, best = record.trials, record.best
    counts = ", ".join(f"{n} {state}" for state in STATES if (n := sum(trial.state == state for trial in trials)))
    seconds = sum(trial.seconds for trial in trials)
    items = [("Trials", str(len(trials)), counts), ("Training time", duration(seconds), "of all trials together")]
    if best is not None:
        spent = f"{compact(best.epochs)} epochs, {duration(best.seconds)}"
        items.insert(0, ("Best validation MRR", score(best.value), f"trial {best.number}: {spent}"))
    return items


def _best_configuration(record: SearchRecord) -> str:
    if record.best is None:
        return ""
    rows = [list(row) for row in record.changes]
    table = html.table(["Key", "CONFIG", "Best"], rows, classes="mono") or "<p>Nothing: CONFIG itself is the best.</p>"
    note = "Keys whose values differ between best.yaml and CONFIG. To train it again: distkg train best.yaml --run RUN"
    return html.card("Best configuration", table, note, wide=True)


def _history(trials: Sequence[Trial]) -> str:
    held = accumulate((trial.value if trial.state == "finished" else 0.0 for trial in trials), max)
    best = [(float(t.number), value) for t, value in zip(trials, held, strict=True) if value > 0]
    series = [Series("best finished so far", best)]
    series += [Series(state, by_number(trials, state), joined=False) for state in STATES]
    note = (
        "A dot for each trial at its best validation. Pruned: stopped early, because most trials were better by then."
    )
    return html.card("History", line_chart(series, Axis("trial", text=whole_number), VALID_MRR), note)


def _importances(importance: Mapping[str, float]) -> str:
    bars = [(key, share, f"{share:.0%}") for key, share in importance.items()]
    note = (
        "Importance of each key for the best quarter of the trials (PED-ANOVA), as shares; imprecise with few trials."
    )
    return html.card("Importance of parameters", html.bars(bars, 1.0), note)


def _slice(trials: Sequence[Trial], key: str, distribution: Distribution) -> str:
    """Return a chart of every validated trial by its value of one key."""
    place, axis = _axis(key, distribution)
    points = [
        (place(t.parameters[key]), t.valid_mrr)
        for t in trials
        if t.valid_mrr is not None and key in t.parameters and distribution.holds(t.parameters[key])
    ]
    return html.card(key, scatter(points, axis, VALID_MRR))


def _axis(key: str, distribution: Distribution) -> tuple[Callable[[object], float], Axis]:
    if isinstance(distribution, Interval):
        return _number, Axis(key, log=distribution.log)
    values = distribution.values

    def name(position: float) -> str:
        known = position == int(position) and 0 <= position < len(values)
        return describe_value(values[int(position)]) if known else ""

    return lambda value: float(_position(distribution, value)), Axis(key, zero=True, top=len(values) - 1.0, text=name)


def _position(choice: Choice, value: object) -> int:
    return next(i for i, known in enumerate(choice.values) if known == value)


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


def _best_runs(record: SearchRecord) -> str:
    """Return the validation MRR by wall time of the best trials, as many as there are line styles."""
    validated = [trial for trial in record.trials if trial.valid_mrr is not None]
    chosen = sorted(validated, key=lambda trial: -(trial.valid_mrr or 0.0))[:STYLES]
    runs = []
    for trial in chosen:
        try:
            runs.append((f"trial {trial.number}", read_run(SearchFolder(record.folder).trial(trial.number))))
        except RunError:
            continue  # its folder was deleted; the log still has its results
    return curves.by_wall_time(runs, curves.VALID_MRR, "The best trials.") if runs else ""


def _table(record: SearchRecord) -> str:
    keys = list(record.space)
    rows = [_row(trial, keys, trial is record.best) for trial in record.trials]
    rung = ["Rung"] if record.method.rungs else []
    header = ["Trial", *rung, "State", "Valid MRR", "Epochs", "Time", "Peak memory", *keys]
    note = "Click a heading to sort. Each trial is a run: `distkg report` shows it alone, or several side by side."
    return html.card("Trials", html.table(header, rows, sortable=True, classes="dense"), note, wide=True)


def _failures(trials: Sequence[Trial]) -> str:
    reasons = [(f"trial {trial.number}", trial.error) for trial in trials if trial.state == "failed"]
    note = "A failed trial counts as an MRR of 0, so that the sampler avoids similar ones."
    return html.card("Trials that failed", html.definitions(reasons), note, wide=True)


def _row(trial: Trial, keys: Sequence[str], best: bool) -> list[Content]:
    mrr = GAP if trial.valid_mrr is None else Cell(score(trial.valid_mrr), trial.valid_mrr, best)
    memory = GAP if trial.peak_mb is None else Cell(decimal_size(1e6 * trial.peak_mb), trial.peak_mb)
    spent = [Cell(compact(trial.epochs), trial.epochs), Cell(duration(trial.seconds), trial.seconds), memory]
    rung = [] if trial.rung is None else [str(trial.rung)]
    values = [parameter_cell(trial.parameters.get(key)) for key in keys]
    return [Cell(str(trial.number), float(trial.number)), *rung, trial.state, mrr, *spent, *values]
