"""Trials of a search that have ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distkg.search.space import Parameters

TrialState = Literal["finished", "pruned", "failed"]


class SearchError(ValueError):
    """Error of a search that cannot start or continue; the message says why and what to do."""


@dataclass(frozen=True)
class Trial:
    """Trial that ended.

    Attributes:
        number: index in the order of starts, from 1.
        parameters: value of each key of the space.
        state: finished; pruned, if it was stopped early because others were better; or failed.
        valid_mrr: best validation MRR; None if it was never validated.
        epochs: epochs trained.
        seconds: training time, of all its processes together.
        error: why it failed.
        peak_mb: peak resident memory of its largest worker (MB); None if it was not measured.
        rung: rung in which it was trained, from 1; None in a search without rungs.
        promoted_from: number of the trial of the rung before, with the same parameters.
    """

    number: int
    parameters: Parameters
    state: TrialState
    valid_mrr: float | None
    epochs: float
    seconds: float
    error: str = ""
    peak_mb: float | None = None
    rung: int | None = None
    promoted_from: int | None = None

    @property
    def name(self) -> str:
        """Name of its folder."""
        return trial_name(self.number)

    @property
    def value(self) -> float:
        """Objective value for the sampler; a failed trial counts as an MRR of 0, so that similar ones are avoided."""
        return self.valid_mrr if self.state != "failed" and self.valid_mrr is not None else 0.0


def trial_name(number: int) -> str:
    """Return the name of a trial's folder.

    >>> trial_name(7)
    '0007'
    """
    return f"{number:04d}"


def finished_trials(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that finished with a validation."""
    return [trial for trial in trials if trial.state == "finished" and trial.valid_mrr is not None]


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Return the finished trial with the highest validation MRR, the earlier of equal ones; None if none has finished.

    Scores of different rungs are not compared: it is the best one of the highest rung in which one has finished.
    """
    return max(finished_trials(trials), key=lambda trial: (trial.rung or 0, trial.value, -trial.number), default=None)
