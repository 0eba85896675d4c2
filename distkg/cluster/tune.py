"""Hyperparameter search on Ray Tune: Optuna proposes trials, ASHA stops poor ones, and each trial is a run.

A search by rungs trains on k-cores and promotes the best trials instead; one with two objectives stops none.

The state of a search is its folder, not Ray's: `SearchFolder` holds every ended trial, and a resumed search passes them
to a new sampler and a new scheduler. A search therefore survives a crash of its driver, and does not depend on the
version of Ray that began it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray import tune

from distkg.cluster.search.proposals import Ended, Proposals, RungProposals
from distkg.cluster.search.schedulers import EarlyStopping, Unstopped
from distkg.cluster.search.study import quiet
from distkg.cluster.search.trial import TrialProcess, keeps_workers, trial_address
from distkg.cluster.session.ray_session import (
    LostClusterError,
    Session,
    ray_session,
    set_driver_environment,
)
from distkg.cluster.session.shortage import describe_shortage
from distkg.cluster.session.waiting import wait_for_room
from distkg.cluster.watch import run_folder
from distkg.cluster.watch.lease import claimed
from distkg.cluster.watch.run_watch import stop_runs
from distkg.config import RunConfig
from distkg.data.storage.location import without_secrets
from distkg.data.storage.objects import is_address
from distkg.data.storage.working_copy import folder_at, shown
from distkg.planning.preflight import check_run
from distkg.printable import printable, printable_lines
from distkg.redaction import redact
from distkg.search.core_stores import core_address, plan_rungs_of, write_core_stores
from distkg.search.method import Method, Options
from distkg.search.rungs import (
    DONE,
    check_batches,
    describe_rungs,
    next_proposal,
    rung_config,
    rung_sizes,
)
from distkg.search.search_folder import SearchFolder
from distkg.search.space import Space, check_space
from distkg.search.trials import SearchError, Trial
from distkg.termination import Terminated
from distkg.training.family import family_of
from distkg.training.provenance import provenance_of

# A CPU reserved for the driver would be missing for its workers; Tune does not accept an empty bundle.
DRIVER = [{"memory": 1e6}]

# No output and files of Tune, no handler that swallows Ctrl-C, and a short wait, instead of ten minutes, for a stopped
# trial that does not release its workers. A validation does not report the cost of a trial, which is known at its end.
TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}


def launch_search(
    config: RunConfig,
    space: Space,
    run: str | Path,
    *,
    trials: int,
    max_concurrent: int = 1,
    options: Options | None = None,
    resume: bool = False,
    ended: Ended | None = None,
) -> list[Trial]:
    """Train ``trials`` configurations from ``space`` and return all ended trials, including those of earlier launches.

    Each trial is a run of ``config`` with some keys changed, on its own ``config.train.workers`` workers, in
    RUN/trials/NUMBER. If ``config`` lies in the space, it is the first trial. A failed trial (diverged loss, exceeded
    memory, settings that exclude each other) is recorded and the search continues. Only the best trial, and those on
    the front of two objectives, keep their checkpoints.

    Args:
        config: configuration shared by all trials; ``train.seed`` is also the seed of the sampler.
        space: search space.
        run: folder of the search, on storage that every node sees, or its address in an object store.
        trials: total number of trials, or with rungs those of the first one; with ``resume`` this includes the ended
            ones.
        max_concurrent: maximum number of concurrent trials.
        options: rungs on k-cores, or a cost as the second objective; default: ASHA by validation MRR.
        resume: continue the search in this folder; interrupted trials continue from their checkpoints.
        ended: function called in this process after each trial, once its record is written.

    Raises:
        RunFolderError, SearchError: the folder is not free, or holds another search.
        StoreMismatchError: the search in the folder used another store; the message names the file that differs.
        SpaceError: some value of the space cannot be run.
        ConfigError, StoreError, PlanError: ``config`` itself cannot be run.
        ClusterError: there is no such cluster.
    """
    config, options = run_folder.absolute_store(config), options or Options()
    options.check(trials)
    check_search(config, space, max_concurrent)
    with folder_at(run) as opened, _claimed(opened, resume=resume, private=config.private) as folder:
        place = str(run) if is_address(run) else str(folder.path)
        record = provenance_of(config, family_of(config).stores(config))
        folder.check(config, space, record)
        method = _method(config, space, folder, options, trials)
        if method.rungs:
            _prepare_rungs(config, space, method, max_concurrent, place)
        folder.start(config, space, record, method)
        shutil.rmtree(folder.path / run_folder.LAUNCH, ignore_errors=True)
        remaining = _remaining(method, folder, trials)
        if remaining > 0:
            _search(config, space, folder, place, remaining, max_concurrent, ended or _silent)
        folder.drop_checkpoints()
        return folder.ended()


def _method(config: RunConfig, space: Space, folder: SearchFolder, options: Options, trials: int) -> Method:
    """Return the method of the search in the folder, or plan that of a new one."""
    if folder.space.exists():
        method = folder.read_method()
        method.check_options(options, trials, folder.path)
        return method
    if not options.rungs:
        return Method(against=options.against)
    rungs = plan_rungs_of(config, rung_sizes(trials, options.rungs), options.full_runs)
    check_batches(config, space, rungs)
    return Method(budget=options.full_runs, rungs=rungs)


def _prepare_rungs(config: RunConfig, space: Space, method: Method, max_concurrent: int, place: str) -> None:
    """Write the stores of the cores, and check the space on the smallest one, before the first trial."""
    for line in describe_rungs(method.rungs):
        _say(line)
    write_core_stores(config, method.rungs, place)
    smallest = min(method.rungs, key=lambda rung: rung.triples)

    def check(changed: RunConfig) -> None:
        check_run(rung_config(changed, smallest, core_address(config, smallest, place)), max_concurrent)

    check(config)
    check_space(space, config, check, "the space")


def _remaining(method: Method, folder: SearchFolder, trials: int) -> int:
    """Return the number of trials that are still to be trained, at most."""
    ended = folder.ended()
    if method.rungs and next_proposal(method.rungs, folder.all_started(), ended) == DONE:
        return 0
    return method.total(trials) - len(ended)


@contextmanager
def _claimed(run: Path, *, resume: bool, private: bool) -> Iterator[SearchFolder]:
    folder = SearchFolder(run_folder.absolute_run(run))
    with claimed(folder.path, resume=resume, private=private):
        yield folder


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


def _search(
    config: RunConfig, space: Space, folder: SearchFolder, place: str, left: int, at_once: int, ended: Ended
) -> None:
    set_driver_environment()
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    quiet()
    method = folder.read_method()
    scheduler: EarlyStopping | Unstopped = EarlyStopping() if method.stops_early else Unstopped()
    scheduler.remember(folder)
    kind = RungProposals if method.rungs else Proposals
    proposals = kind(config, space, folder, scheduler, left, at_once, ended)
    # Ray Train frees the places of a stopped trial's workers by asking Ray's state service, a part of the dashboard.
    with ray_session(config, at_once, dashboard=not keeps_workers(config)) as session:
        try:
            _run_trials(config, folder, place, proposals, scheduler, left, at_once, session)
        except (KeyboardInterrupt, SystemExit):
            _report_stop(folder, session)
            raise Terminated(session.signals.received or signal.SIGINT) from None
    shutil.rmtree(folder.path / run_folder.LAUNCH, ignore_errors=True)


def _run_trials(
    config: RunConfig,
    folder: SearchFolder,
    place: str,
    proposals: Proposals,
    scheduler: EarlyStopping | Unstopped,
    left: int,
    at_once: int,
    session: Session,
) -> None:
    wait_for_room(config, _say, nodes_may_come=session.private is None)
    shortage = describe_shortage(config, at_once)
    if shortage:
        _say(shortage)
    tuner = _tuner(config, folder, place, proposals, scheduler, left, at_once)
    try:
        session.run(tuner.fit)
    except (KeyboardInterrupt, SystemExit):
        proposals.close()
        stop_runs([without_secrets(trial_address(place, number)) for number in folder.interrupted()])
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
        if session.signals.whole_command:
            _end_output()


def _end_output() -> None:
    """Discard what this process prints from now on: Ray would report the processes of a stopped trial as dead."""
    sys.stdout.flush()
    sys.stderr.flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def _how_to_resume(folder: SearchFolder) -> str:
    return f"Continue with the same command and --resume; the search is in {printable(shown(folder.path))}"


def _say(sentence: str) -> None:
    print(printable_lines(redact(sentence)), flush=True)


def _tuner(
    config: RunConfig,
    folder: SearchFolder,
    place: str,
    proposals: Proposals,
    scheduler: EarlyStopping | Unstopped,
    trials: int,
    max_concurrent: int,
) -> tune.Tuner:
    # A parameter is passed through Ray's object store, so that the files of Tune hold no addresses.
    trial = tune.with_parameters(TrialProcess, address=place, tree=config.model_dump(), max_concurrent=max_concurrent)
    return tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory(DRIVER)),
        tune_config=tune.TuneConfig(
            search_alg=proposals,
            scheduler=scheduler,
            num_samples=trials,
            max_concurrent_trials=max_concurrent,
            reuse_actors=keeps_workers(config),
            trial_dirname_creator=lambda started: str(started.trial_id),
        ),
        run_config=tune.RunConfig(
            name=run_folder.LAUNCH,
            storage_path=str(folder.path),
            # Failures of a trial's process, such as a lost node; errors of its run never reach Tune.
            failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a run saves its own
            verbose=0,
        ),
    )
