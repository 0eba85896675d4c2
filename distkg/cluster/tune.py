"""Hyperparameter search on Ray Tune: Optuna proposes trials, ASHA stops poor ones, and each trial is a run.

The state of a search is its folder, not Ray's: `SearchFolder` holds every ended trial, and a resumed search passes them
to a new sampler and a new scheduler. A search therefore survives a crash of its driver, and does not depend on the
version of Ray that began it.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from distkg.cluster.launch import run_on_workers
from distkg.cluster.search.study import distributions, make_sampler, quiet
from distkg.cluster.session.ray_session import (
    LostClusterError,
    Session,
    describe_shortage,
    ray_session,
    set_driver_environment,
)
from distkg.cluster.session.waiting import wait_for_room
from distkg.cluster.watch import run_folder
from distkg.cluster.watch.lease import STALE_SECONDS, claimed, wait_until_free
from distkg.cluster.watch.progress_monitor import Record
from distkg.cluster.watch.run_watch import stop_runs
from distkg.config import ConfigError, RunConfig, parse_config
from distkg.planning.preflight import check_run
from distkg.printable import printable, printable_lines
from distkg.redaction import redact
from distkg.search.search_folder import (
    SearchError,
    SearchFolder,
    Trial,
    budget_share,
    metric_lines,
    validations,
)
from distkg.search.space import Space, check_space, parameters_of, with_parameters
from distkg.termination import Terminated
from distkg.training.family import family_of
from distkg.training.provenance import provenance_of
from distkg.training.run import train_on_rank

MRR, SHARE = "valid_mrr", "budget_share"

# Trials are first compared after an eighth of their budget, and the best third of them continues.
FIRST_RUNG, REDUCTION = 0.125, 3
NEVER = 1.01  # above every reported share, because a run decides itself when it ends

# A CPU reserved for the driver would be missing for its workers; Tune does not accept an empty bundle.
DRIVER = [{"memory": 1e6}]

# No output and files of Tune, no handler that swallows Ctrl-C, and a short wait, instead of ten minutes, for a stopped
# trial that does not release its workers.
TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
}

LOST_TRIAL_SECONDS = 2 * STALE_SECONDS
"""Maximum seconds that a trial waits for the lease of its former process, which may have been lost with its node."""

Ended = Callable[[Trial], None]


def launch_search(
    config: RunConfig,
    space: Space,
    run: str | Path,
    *,
    trials: int,
    max_concurrent: int = 1,
    resume: bool = False,
    ended: Ended | None = None,
) -> list[Trial]:
    """Train ``trials`` configurations from ``space`` and return all ended trials, including those of earlier launches.

    Each trial is a run of ``config`` with some keys changed, on its own ``config.train.workers`` workers, in
    RUN/trials/NUMBER. If ``config`` lies in the space, it is the first trial. A failed trial (diverged loss, exceeded
    memory, settings that exclude each other) is recorded and the search continues. Only the best trial keeps its
    checkpoints.

    Args:
        config: configuration shared by all trials; ``train.seed`` is also the seed of the sampler.
        space: search space.
        run: folder of the search, on storage that every node sees.
        trials: total number of trials; with ``resume`` this includes the ended ones.
        max_concurrent: maximum number of concurrent trials.
        resume: continue the search in this folder; interrupted trials continue from their checkpoints.
        ended: function called in this process after each trial, once its record is written.

    Raises:
        RunFolderError, SearchError: the folder is not free, or holds another search.
        StoreMismatchError: the search in the folder used another store; the message names the file that differs.
        SpaceError: some value of the space cannot be run.
        ConfigError, StoreError, PlanError: ``config`` itself cannot be run.
        ClusterError: there is no such cluster.
    """
    folder = SearchFolder(run_folder.absolute_run(run))
    config = run_folder.absolute_store(config)
    check_search(config, space, max_concurrent)
    with claimed(folder.path, resume=resume, private=config.private):
        folder.start(config, space, provenance_of(config, family_of(config).stores(config)))
        shutil.rmtree(folder.path / run_folder.LAUNCH, ignore_errors=True)
        remaining = trials - len(folder.ended())
        if remaining > 0:
            _search(config, space, folder, remaining, max_concurrent, ended or _silent)
        folder.drop_checkpoints()
        return folder.ended()


def check_search(config: RunConfig, space: Space, max_concurrent: int = 1) -> None:
    """Validate the configuration, and each value of the space with it, before a search starts.

    Raises:
        ConfigError, StoreError, PlanError, SpaceError: as for `launch_search`.
    """
    stores = family_of(config).stores(config)
    if not any(store.manifest.triples.get("valid") for store in stores):
        listed = ", ".join(store.shown for store in stores)
        raise SearchError(
            f"a search compares trials by validation MRR, and there is no valid split in {listed}. "
            "Prepare one with `distkg prepare --split` or `--valid`."
        )
    check_run(config, max_concurrent)
    check_space(space, config, lambda changed: check_run(changed, max_concurrent), "the space")


def _silent(trial: Trial) -> None:
    return


def _search(config: RunConfig, space: Space, folder: SearchFolder, left: int, at_once: int, ended: Ended) -> None:
    set_driver_environment()
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    quiet()
    scheduler = Scheduler()
    scheduler.remember(folder)
    proposals = Proposals(config, space, folder, scheduler, left, at_once, ended)
    # Ray Train frees the places of a stopped trial's workers by asking Ray's state service, a part of the dashboard.
    with ray_session(config, at_once, dashboard=True) as session:
        try:
            _run_trials(config, folder, proposals, scheduler, left, at_once, session)
        except (KeyboardInterrupt, SystemExit):
            _report_stop(folder, session)
            raise Terminated(session.signals.received or signal.SIGINT) from None
    shutil.rmtree(folder.path / run_folder.LAUNCH, ignore_errors=True)


def _run_trials(
    config: RunConfig,
    folder: SearchFolder,
    proposals: Proposals,
    scheduler: Scheduler,
    left: int,
    at_once: int,
    session: Session,
) -> None:
    wait_for_room(config, _say, nodes_may_come=session.private is None)
    shortage = describe_shortage(config, at_once)
    if shortage:
        _say(shortage)
    tuner = _tuner(config, folder, proposals, scheduler, left, at_once)
    try:
        session.run(tuner.fit)
    except (KeyboardInterrupt, SystemExit):
        proposals.close()
        stop_runs([str(folder.trial(number)) for number in folder.interrupted()])
        _report_stop(folder, session)
        raise
    except LostClusterError as error:
        lost = LostClusterError(f"the Ray cluster is lost: {error}. {_how_to_resume(folder)}")
        session.signals.end_command(f"error: {lost}", 1)
        raise lost from None


def _report_stop(folder: SearchFolder, session: Session) -> None:
    if not session.signals.reported:
        session.signals.reported = True
        _say(f"stopped by {session.signals.name}. {_how_to_resume(folder)}")


def _how_to_resume(folder: SearchFolder) -> str:
    return f"Continue with the same command and --resume; the search is in {printable(str(folder.path))}"


def _say(sentence: str) -> None:
    print(printable_lines(redact(sentence)), flush=True)


def _tuner(
    config: RunConfig,
    folder: SearchFolder,
    proposals: Proposals,
    scheduler: Scheduler,
    trials: int,
    max_concurrent: int,
) -> tune.Tuner:
    path = str(folder.path)

    def trial(settings: dict[str, Any], tree: dict[str, Any]) -> None:
        config = parse_config(tree, "the launched search")
        run_trial(SearchFolder(Path(path)), int(settings["number"]), max_concurrent, config)

    # A parameter is passed through Ray's object store, so that the files of Tune hold no addresses.
    trial = tune.with_parameters(trial, tree=config.model_dump())
    return tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory(DRIVER)),
        tune_config=tune.TuneConfig(
            search_alg=proposals,
            scheduler=scheduler,
            num_samples=trials,
            max_concurrent_trials=max_concurrent,
            trial_dirname_creator=lambda started: str(started.trial_id),
        ),
        run_config=tune.RunConfig(
            name=run_folder.LAUNCH,
            storage_path=path,
            # Failures of a trial's process, such as a lost node; errors of its run never reach Tune.
            failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
            verbose=0,
        ),
    )


def run_trial(folder: SearchFolder, number: int, max_concurrent: int = 1, base: RunConfig | None = None) -> None:
    """Run one trial in a process of its own, and report each validation to Tune.

    ``base`` is the configuration shared by all trials, with the secrets of addresses; default: that in the folder of
    the search, which has no secrets. A failure is written to error.txt and reported as an MRR of 0.
    """
    run = folder.trial(number)
    (run / "error.txt").unlink(missing_ok=True)
    try:
        config = with_parameters(base or folder.read_config(), folder.parameters(number))
        check_run(config, max_concurrent)
        wait_until_free(run, LOST_TRIAL_SECONDS)
        run_on_workers(train_on_rank, config, run, resume=True, listener=Reports(config, run))
    except Exception as error:
        folder.note_failure(number, error)
        tune.report({MRR: 0.0, SHARE: 1.0})
    else:
        seen = validations(metric_lines(run))
        tune.report({MRR: seen[-1][1] if seen else 0.0, SHARE: 1.0})


class Reports:
    """Listener that reports validations to Tune, each as the best MRR so far.

    The last validation is reported with the result: if it were reported earlier, Tune could stop a run before its final
    evaluation.
    """

    def __init__(self, config: RunConfig, run: Path) -> None:
        self._config = config
        self._lines = metric_lines(run)

    def __call__(self, line: Record) -> None:
        self._lines.append(line)
        share = budget_share(self._config, line)
        if not line.get("valid") or share >= 1:
            return
        tune.report({MRR: validations(self._lines)[-1][1], SHARE: share})


class Scheduler(ASHAScheduler):
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


class Proposals(OptunaSearch):
    """Search algorithm of Optuna that creates a folder for each proposal, and logs ended trials.

    Interrupted trials come first, then new ones. The parameters that Tune sees are only the number of a trial.
    """

    def __init__(
        self,
        config: RunConfig,
        space: Space,
        folder: SearchFolder,
        scheduler: Scheduler,
        left: int,
        max_concurrent: int,
        ended: Ended,
    ) -> None:
        past = folder.ended()
        self._waiting = folder.interrupted()[:left]
        first = [folder.parameters(number) for number in self._waiting]
        base = parameters_of(config, space)
        if not past and not first and base is not None:
            first.append(base)
        # A resumed search must not repeat the random draws of its start.
        seed = config.train.seed + len(past) + len(first)
        super().__init__(
            distributions(space),
            metric=MRR,
            mode="max",
            points_to_evaluate=first,
            sampler=make_sampler(seed, left + len(past), parallel=max_concurrent > 1),
        )
        for trial in past:
            self.add_evaluated_point(trial.parameters, trial.value)
        self._folder, self._scheduler, self._ended = folder, scheduler, ended
        self._numbers: dict[str, int] = {}
        self._closed = False

    def suggest(self, trial_id: str) -> dict[str, int]:
        """Return the number of the next trial."""
        parameters = super().suggest(trial_id)
        number = self._waiting.pop(0) if self._waiting else self._folder.begin(parameters)
        self._numbers[trial_id] = number
        return {"number": number}

    def on_trial_complete(self, trial_id: str, result: Record | None = None, error: bool = False) -> None:
        """Report the result to Optuna, log the trial, and call ``ended``."""
        number = self._numbers.pop(trial_id, None)
        if number is None or self._closed:
            return
        pruned = trial_id in self._scheduler.stopped
        trial = self._folder.outcome(number, "failed" if error or not pruned else "pruned")
        super().on_trial_complete(trial_id, {MRR: trial.value})
        # Before the new record, because a trial that was just stopped may still be writing a checkpoint.
        self._folder.drop_checkpoints()
        self._folder.append(trial)
        self._ended(trial)

    def close(self) -> None:
        """Ignore further results: trials that end from now on count as interrupted, and continue with the search."""
        self._closed = True

    def save(self, checkpoint_path: str) -> None:
        """Do nothing, because the log is the state."""
