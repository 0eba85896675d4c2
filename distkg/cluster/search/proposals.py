"""Proposals of a search: Optuna's for new configurations, and the best trials of a rung for the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optuna.trial import create_trial
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from distkg.cluster.search.schedulers import EarlyStopping, Unstopped
from distkg.cluster.search.study import distributions, make_sampler
from distkg.cluster.search.trial import MRR
from distkg.cluster.watch.progress_monitor import Record
from distkg.config import RunConfig
from distkg.search.front import objective_values
from distkg.search.rungs import WAIT, next_proposal
from distkg.search.search_folder import SearchFolder
from distkg.search.space import Space, parameters_of
from distkg.search.trials import Trial

COST = "cost"

Ended = Callable[[Trial], None]


class Proposals(OptunaSearch):
    """Search algorithm of Optuna that creates a folder for each proposal, and logs ended trials.

    Interrupted trials come first, then new ones. The parameters that Tune sees are only the number of a trial. With
    two objectives, Optuna learns of MRR and cost.
    """

    def __init__(
        self,
        config: RunConfig,
        space: Space,
        folder: SearchFolder,
        scheduler: EarlyStopping | Unstopped,
        left: int,
        max_concurrent: int,
        ended: Ended,
    ) -> None:
        self._method = folder.read_method()
        past = [trial for trial in folder.ended() if self._sampled(trial.rung)]
        self._waiting = folder.interrupted()[:left]
        first = [folder.parameters(number) for number in self._waiting if self._sampled(_rung_of(folder, number))]
        base = parameters_of(config, space)
        if not past and not first and base is not None:
            first.append(base)
        # A resumed search must not repeat the random draws of its start.
        seed = config.train.seed + len(past) + len(first)
        two = self._method.against is not None
        super().__init__(
            distributions(space),
            metric=[MRR, COST] if two else MRR,
            mode=["max", "min"] if two else "max",
            points_to_evaluate=first,
            sampler=make_sampler(seed, self._proposed(left + len(past)), parallel=max_concurrent > 1),
        )
        for trial in past:
            values = self._values(trial, past).values()
            self._ot_study.add_trial(
                create_trial(values=list(values), params=trial.parameters, distributions=distributions(space))
            )
        self._folder, self._scheduler, self._ended = folder, scheduler, ended
        self._numbers: dict[str, int] = {}
        self._closed = False

    def suggest(self, trial_id: str) -> dict[str, int] | str | None:
        """Return the number of the next trial."""
        parameters = super().suggest(trial_id)
        number = self._waiting.pop(0) if self._waiting else self._folder.begin(parameters)
        self._numbers[trial_id] = number
        return {"number": number}

    def on_trial_result(self, trial_id: str, result: Record) -> None:
        """Do nothing: the sampler learns the objectives of a trial at its end."""

    def on_trial_complete(self, trial_id: str, result: Record | None = None, error: bool = False) -> None:
        """Report the result to Optuna, log the trial, and call ``ended``."""
        number = self._numbers.pop(trial_id, None)
        if number is None or self._closed:
            return
        pruned = trial_id in self._scheduler.stopped
        trial = self._folder.outcome(number, "failed" if error or not pruned else "pruned")
        if trial_id in self._ot_trials:  # a promoted trial is none of Optuna's
            super().on_trial_complete(trial_id, self._values(trial, [*self._folder.ended(), trial]))
        # Before the new record, because a trial that was just stopped may still be writing a checkpoint.
        self._folder.drop_checkpoints()
        self._folder.append(trial)
        self._ended(trial)

    def _values(self, trial: Trial, trials: Sequence[Trial]) -> Record:
        """Return the objectives of an ended trial, one of ``trials``, by name."""
        against = self._method.against
        if against is None:
            return {MRR: trial.value}
        mrr, cost = objective_values(trial, trials, against)
        return {MRR: mrr, COST: cost}

    def _sampled(self, rung: int | None) -> bool:
        """Return whether Optuna proposed the parameters of a trial: not if it was promoted to its rung."""
        return rung in (None, 1)

    def _proposed(self, trials: int) -> int:
        """Return how many of the trials of the whole search Optuna proposes."""
        return self._method.rungs[0].trials if self._method.rungs else trials

    def close(self) -> None:
        """Ignore further results: trials that end from now on count as interrupted, and continue with the search."""
        self._closed = True

    def save(self, checkpoint_path: str) -> None:
        """Do nothing, because the log is the state."""


class RungProposals(Proposals):
    """Proposals of a search by rungs: new configurations in the first rung, then the best ones of each rung.

    A rung begins when all trials of the one before have ended; Tune asks again until then.
    """

    def suggest(self, trial_id: str) -> dict[str, int] | str | None:
        """Return the number of the next trial, None to be asked again, or ``FINISHED``."""
        if self._waiting:
            number = self._waiting.pop(0)
            if self._sampled(_rung_of(self._folder, number)):
                OptunaSearch.suggest(self, trial_id)
        else:
            proposal = next_proposal(self._method.rungs, self._folder.all_started(), self._folder.ended())
            if proposal == WAIT:
                return None
            if isinstance(proposal, str):
                return str(Searcher.FINISHED)
            parameters = proposal.parameters or OptunaSearch.suggest(self, trial_id)
            source = None if proposal.promoted is None else proposal.promoted.number
            number = self._folder.begin(parameters, proposal.rung, source)
        self._numbers[trial_id] = number
        return {"number": number}


def _rung_of(folder: SearchFolder, number: int) -> int | None:
    started = folder.started(number)
    return None if started is None else started.rung
