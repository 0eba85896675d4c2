"""Two objectives of a search: validation MRR against a cost, and the Pareto front of its trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from distkg.search.trials import Trial, finished_trials

Cost = Literal["seconds", "memory"]
COSTS: tuple[Cost, ...] = get_args(Cost)

COST_NAMES: dict[Cost, str] = {"seconds": "training time (s)", "memory": "peak memory of a worker (MB)"}
"""Cost → its name with its unit."""


def cost_of(trial: Trial, against: Cost) -> float | None:
    """Return the cost of a trial: training seconds, or the peak memory of its largest worker (MB); None if it was not
    measured."""
    return trial.seconds if against == "seconds" else trial.peak_mb


def pareto_front(trials: Sequence[Trial], against: Cost) -> list[Trial]:
    """Return the finished trials that no other one dominates, by rising cost, and so by rising MRR.

    A trial dominates another if it is at least as good in MRR and in cost, and better in one of them. Of trials that
    are equal in both, all are on the front.
    """
    points = [
        (cost, -trial.value, trial.number, trial)
        for trial in finished_trials(trials)
        if (cost := cost_of(trial, against)) is not None
    ]
    front: list[Trial] = []
    least = last = None
    for cost, negative, _, trial in sorted(points, key=lambda point: point[:3]):
        if least is None or negative < least or (cost, negative) == last:
            front.append(trial)
            least, last = negative, (cost, negative)
    return front


def objective_values(trial: Trial, trials: Sequence[Trial], against: Cost) -> tuple[float, float]:
    """Return MRR and cost of a trial for the sampler.

    A failed trial, and one without a measured cost, counts as an MRR of 0 at the largest cost of ``trials``: a low
    cost alone would put it on the front.
    """
    own, largest = cost_of(trial, against), largest_cost(trials, against)
    if trial.state == "failed" or own is None:
        return 0.0, largest
    return trial.value, own


def largest_cost(trials: Sequence[Trial], against: Cost) -> float:
    """Return the largest cost of the trials; 0 if none was measured."""
    return max((cost for trial in trials if (cost := cost_of(trial, against)) is not None), default=0.0)
