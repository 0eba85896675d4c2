"""Schedulers of Ray Tune for a search: ASHA, or none that stops a trial."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from distkg.cluster.search.trial import MRR, SHARE
from distkg.cluster.watch.progress_monitor import Record
from distkg.config import ConfigError
from distkg.search.search_folder import SearchFolder, budget_share, metric_lines, validations
from distkg.search.space import with_parameters

# Trials are first compared after an eighth of their budget, and the best third of them continues.
FIRST_RUNG, REDUCTION = 0.125, 3
NEVER = 1.01  # above every reported share, because a run decides itself when it ends


class EarlyStopping(ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934) over the used share of the budget.

    With a binding time limit, trials are compared at equal times, else at equal epochs.

    Attributes:
        stopped: Tune's ids of stopped trials.
    """

    def __init__(self) -> None:
        super().__init__(
            time_attr=SHARE,
            metric=MRR,
            mode="max",
            max_t=NEVER,
            grace_period=FIRST_RUNG,
            reduction_factor=REDUCTION,
        )
        self.stopped: set[str] = set()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Record) -> str:
        decision = str(super().on_trial_result(tune_controller, trial, result))
        if decision == TrialScheduler.STOP:
            self.stopped.add(trial.trial_id)
        return decision

    def remember(self, folder: SearchFolder) -> None:
        """Enter the validations of ended trials, so that new trials are compared with them."""
        base = folder.read_config()
        for ended in folder.ended():
            stand_in = SimpleNamespace(trial_id=f"ended-{ended.name}")
            try:
                config = with_parameters(base, ended.parameters)
            except ConfigError:
                continue
            self.on_trial_add(None, stand_in)
            for line, best in validations(metric_lines(folder.trial(ended.number))):
                self.on_trial_result(None, stand_in, {MRR: best, SHARE: min(1.0, budget_share(config, line))})


class Unstopped(FIFOScheduler):
    """Scheduler that lets every trial train to its end: in a rung, and with two objectives.

    Attributes:
        stopped: Tune's ids of stopped trials; none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stopped: set[str] = set()

    def remember(self, folder: SearchFolder) -> None:
        """Do nothing, because no trial is compared with those that ended."""
