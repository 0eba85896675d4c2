"""Parts of the page of a search about its method: the front of two objectives, and its rungs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from distkg.reporting import html
from distkg.reporting.html import GAP, Cell, Content
from distkg.reporting.quantities import compact, duration, score
from distkg.reporting.svg import Axis, Series, line_chart
from distkg.reporting.tables import text_table
from distkg.search.front import COST_NAMES, Cost, cost_of, pareto_front
from distkg.search.rungs import Rung, describe_core
from distkg.search.space import Value, describe_parameters, describe_value
from distkg.search.trials import Trial, finished_trials

VALID_MRR = Axis("best validation MRR")


def front_table(trials: Sequence[Trial], against: Cost) -> Table:
    """Return a table of the trials on the front, by rising cost, for the terminal."""
    rows = [
        (*_front_cells(trial, against), describe_parameters(trial.parameters))
        for trial in pareto_front(trials, against)
    ]
    title = f"Front: validation MRR against {COST_NAMES[against]}"
    return text_table(["trial", "valid MRR", COST_NAMES[against], "parameters"], rows, title)


def front_cards(trials: Sequence[Trial], against: Cost, keys: Sequence[str]) -> list[str]:
    """Return a chart of MRR against cost with the front marked, and a table of the front."""
    front = pareto_front(trials, against)
    points = [
        (cost, trial.value, trial in front)
        for trial in sorted(finished_trials(trials), key=lambda trial: cost_of(trial, against) or 0.0)
        if (cost := cost_of(trial, against)) is not None
    ]
    series = [
        Series("on the front", [(cost, mrr) for cost, mrr, on in points if on]),
        Series("dominated", [(cost, mrr) for cost, mrr, on in points if not on], joined=False),
    ]
    chart = line_chart(series, Axis(COST_NAMES[against]), VALID_MRR)
    rows: list[list[Content]] = [
        [*_front_cells(trial, against), *(parameter_cell(trial.parameters.get(key)) for key in keys)] for trial in front
    ]
    table = html.table(["Trial", "Valid MRR", COST_NAMES[against].capitalize(), *keys], rows, classes="dense")
    note = "No other finished trial has an MRR as high at a cost as low. Their configurations are in front/."
    return [html.card("Validation MRR against cost", chart), html.card("Front", table, note, wide=True)]


def _front_cells(trial: Trial, against: Cost) -> tuple[str, str, str]:
    cost = cost_of(trial, against)
    return str(trial.number), score(trial.value), GAP if cost is None else compact(cost)


def rungs_card(trials: Sequence[Trial], rungs: Sequence[Rung]) -> str:
    """Return a table of the rungs: their graphs, epochs, trials, best MRR and time."""
    rows = [_rung_row(place, rung, trials) for place, rung in enumerate(rungs, 1)]
    columns = ["Rung", "Graph", "Triples", "Entities", "Valid triples", "Epochs", "Trials", "Best valid MRR", "Time"]
    note = (
        "Successive halving on k-cores (GraSH). A rung ranks the validation triples whose entities are in its core: "
        "compare scores within a rung only."
    )
    return html.card("Rungs", html.table(columns, rows), note, wide=True)


def _rung_row(place: int, rung: Rung, trials: Sequence[Trial]) -> list[Content]:
    own = [trial for trial in trials if trial.rung == place]
    best = max((trial.value for trial in finished_trials(own)), default=None)
    sizes = (f"{size:,}" for size in (rung.triples, rung.entities, rung.valid_triples))
    progress = [f"{len(own)} of {rung.trials}", GAP if best is None else score(best)]
    return [str(place), describe_core(rung), *sizes, str(rung.epochs), *progress, duration(sum(t.seconds for t in own))]


def rungs_history(trials: Sequence[Trial], rungs: Sequence[Rung]) -> str:
    """Return a chart of every finished trial by its number, with a series for each rung."""
    series = [
        Series(f"rung {place}", by_number([t for t in trials if t.rung == place], "finished"), joined=False)
        for place, _ in enumerate(rungs, 1)
    ]
    note = "A dot for each finished trial at its best validation, by rung; rungs rank different triples."
    return html.card("History", line_chart(series, Axis("trial", text=whole_number), VALID_MRR), note)


def by_number(trials: Sequence[Trial], state: str) -> list[tuple[float, float]]:
    """Return number and MRR of the validated trials that ended in a state."""
    return [(float(t.number), t.valid_mrr) for t in trials if t.state == state and t.valid_mrr is not None]


def whole_number(value: float) -> str:
    """Return the label of a tick at a whole number; empty between them."""
    return f"{value:.0f}" if value == int(value) else ""


def parameter_cell(value: Value) -> Content:
    """Return the cell of a parameter; numbers are sorted as numbers."""
    text = describe_value(value)
    return text if value is None or isinstance(value, bool | str) else Cell(text, float(value))
