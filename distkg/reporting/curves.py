"""Charts of quantities over the training, by epoch and by wall time, for one run or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from distkg.reporting import html
from distkg.reporting.run_record import RunRecord
from distkg.reporting.svg import Axis, Series, line_chart

Named = tuple[str, RunRecord]

EPOCH = Axis("epoch", zero=True)
_CLOCKS = ((7200.0, "hours", 3600.0), (120.0, "minutes", 60.0), (0.0, "seconds", 1.0))


@dataclass(frozen=True)
class Quantity:
    """Column of metrics.jsonl: its dotted key, the title of its charts, and their vertical axis."""

    key: str
    title: str
    axis: Axis


LOSS = Quantity("loss", "Loss", Axis("loss"))
VALID_MRR = Quantity("valid.mrr", "Validation MRR", Axis("MRR", zero=True, text="{:.4g}".format))
VALID_HITS10 = Quantity("valid.hits@10", "Validation Hits@10", Axis("Hits@10", zero=True, text="{:.4g}".format))


def by_epoch(runs: Sequence[Named], quantity: Quantity, note: str = "") -> str:
    """Return a card with a line for each run over epochs; empty if no run has the quantity."""
    series = [Series(name, run.column(quantity.key, "epoch")) for name, run in runs]
    return html.card(f"{quantity.title} by epoch", _chart(series, EPOCH, quantity), note)


def by_wall_time(runs: Sequence[Named], quantity: Quantity, note: str = "") -> str:
    """Return a card with a line for each run over the time since its start; empty if no run has the quantity."""
    timed = [(name, run.column(quantity.key, "time")) for name, run in runs]
    longest = max((time for _, points in timed for time, _ in points), default=0.0)
    unit, seconds = next((unit, length) for least, unit, length in _CLOCKS if longest >= least)
    series = [Series(name, [(time / seconds, value) for time, value in points]) for name, points in timed]
    return html.card(f"{quantity.title} by wall time", _chart(series, Axis(unit, zero=True), quantity), note)


def _chart(series: Sequence[Series], x: Axis, quantity: Quantity) -> str:
    # An axis from zero would hide the differences between several runs.
    return line_chart(series, x, quantity.axis if len(series) == 1 else replace(quantity.axis, zero=False))
