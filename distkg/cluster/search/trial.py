"""Process of a search that runs one trial after another, and keeps their workers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray
from ray import tune

from distkg.cluster.kept_workers import KeptWorkers
from distkg.cluster.launch import run_on_workers
from distkg.cluster.watch.heartbeats import watch_name
from distkg.cluster.watch.lease import STALE_SECONDS, wait_until_free
from distkg.cluster.watch.progress_monitor import Record
from distkg.cluster.worker_group import release_workers
from distkg.config import RunConfig, parse_config
from distkg.data.storage.atomic_file import replace_text
from distkg.data.storage.location import address_within, without_secrets
from distkg.data.storage.working_copy import delete, flush, folder_at, refresh_below
from distkg.planning.preflight import check_run
from distkg.search.core_stores import core_address
from distkg.search.rungs import rung_config
from distkg.search.search_folder import SearchFolder, budget_share, metric_lines, validations
from distkg.search.space import with_parameters
from distkg.search.trials import trial_name
from distkg.training.run import train_on_rank

MRR, SHARE = "valid_mrr", "budget_share"

LOST_TRIAL_SECONDS = 2 * STALE_SECONDS
"""Maximum seconds that a trial waits for the lease of its former process, which may have been lost with its node."""

PRUNED_SECONDS = 10.0
"""Maximum seconds in which the workers of a pruned trial reach the end of a step; those that do not are replaced."""

WORKERS = "workers.txt"
"""File of a trial's folder with the name of the kept workers that train it."""

IDLE_SECONDS = 5.0
"""Seconds without a trial after which a process gives its workers back: trials of others may wait for their room."""

Report = Callable[[Record], object]


def keeps_workers(config: RunConfig) -> bool:
    """Return whether the trials of a search share workers: not if their number may vary, which Ray Train decides."""
    return config.cluster.min_workers is None


class TrialProcess(tune.Trainable):
    """Actor of Ray Tune that runs one trial after another: each step is the next report of the current trial."""

    def setup(self, config: dict[str, Any], address: str, tree: dict[str, Any], max_concurrent: int) -> None:
        """Start the first trial.

        Args:
            config: its ``number``.
            address: folder of the search, or its address in an object store.
            tree: configuration shared by all trials, with the secrets of addresses.
            max_concurrent: maximum number of concurrent trials.
        """
        self._opened = ExitStack()
        self._address, self._base = address, parse_config(tree, "the launched search")
        self._folder = SearchFolder(self._opened.enter_context(folder_at(address)))
        self._max_concurrent = max_concurrent
        self._changing, self._idle = threading.Lock(), threading.Timer(0, lambda: None)
        self._kept = self._new_workers()
        self._begin(int(config["number"]))

    def step(self) -> Record:
        """Return the next report of the trial; blocks until there is one."""
        report = self._reports.get()
        if isinstance(report, Exception):
            raise report
        return report

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial, after the end of the current one, which may have been pruned in the middle of a step."""
        self._end_trial()
        self._begin(int(new_config["number"]))
        return True

    def cleanup(self) -> None:
        """End the workers, and with them the trial."""
        self._idle.cancel()
        if self._kept is not None:
            self._kept.close()
        self._opened.close()

    def _new_workers(self) -> KeptWorkers | None:
        return KeptWorkers(self._base) if keeps_workers(self._base) else None

    def _begin(self, number: int) -> None:
        self._idle.cancel()
        with self._changing:
            self._busy = True
        self._run, self._reports = trial_address(self._address, number), SimpleQueue[Record | Exception]()
        self._thread = threading.Thread(target=self._train_run, args=(number, self._reports), name="trial", daemon=True)
        self._thread.start()

    def _train_run(self, number: int, reports: SimpleQueue[Record | Exception]) -> None:
        try:
            run_trial(self._folder, number, reports.put, self._max_concurrent, self._base, self._kept, self._address)
        except Exception as error:  # the folder of the search cannot be written to
            reports.put(error)
        self._busy = False
        self._idle = threading.Timer(IDLE_SECONDS, self._give_workers_back)
        self._idle.daemon = True
        self._idle.start()

    def _give_workers_back(self) -> None:
        """Replace the workers by new ones, which are requested only for the next trial."""
        with self._changing:
            if self._kept is not None and not self._busy:
                self._kept.close()
                self._kept = self._new_workers()

    def _end_trial(self) -> None:
        """Stop the trial if it still trains, and replace workers that do not stop."""
        if self._thread.is_alive():
            with suppress(ValueError):  # it has no workers yet
                ray.get_actor(watch_name(without_secrets(self._run))).stop.remote()
            self._thread.join(PRUNED_SECONDS)
        if self._thread.is_alive() and self._kept is not None:
            self._kept.close()
            self._thread.join()
            self._kept = self._new_workers()


def trial_address(search: str, number: int) -> str:
    """Return the path or address of the run folder of a trial."""
    return address_within(search, f"trials/{trial_name(number)}")


def run_trial(
    folder: SearchFolder,
    number: int,
    report: Report,
    max_concurrent: int = 1,
    base: RunConfig | None = None,
    kept: KeptWorkers | None = None,
    search: str = "",
) -> None:
    """Run one trial, and report each validation.

    A failure is written to error.txt and reported as an MRR of 0.

    Args:
        report: function called with the best MRR so far, the used share of the budget, and at last ``done``.
        base: configuration shared by all trials, with the secrets of addresses; default: that in the folder of the
            search, which has no secrets.
        kept: workers that train it; default: new ones of Ray Train.
        search: path or address of the search; default: that of ``folder``.
    """
    run, search = folder.trial(number), search or str(folder.path)
    delete(run / "error.txt")
    try:
        config = trial_config(base or folder.read_config(), folder, number, search)
        check_run(config, max_concurrent)
        wait_until_free(run, LOST_TRIAL_SECONDS)
        if kept is not None:
            _take_over(run, kept)
        listener = Reports(config, run, report)
        address = trial_address(search, number)
        run_on_workers(train_on_rank, config, address, resume=True, listener=listener, kept=kept)
        refresh_below(run)
    except Exception as error:
        folder.note_failure(number, error)
        mrr = 0.0
    else:
        seen = validations(metric_lines(run))
        mrr = seen[-1][1] if seen else 0.0
    report({MRR: mrr, SHARE: 1.0, "done": True})


def _take_over(run: Path, kept: KeptWorkers) -> None:
    """Release the room of the workers of a lost process that trained this trial, and record who trains it now."""
    record = run / WORKERS
    former = record.read_text(encoding="utf-8").strip() if record.is_file() else ""
    if former not in ("", kept.name):
        release_workers(former)
    replace_text(record, kept.name + "\n")
    flush(run)


def trial_config(base: RunConfig, folder: SearchFolder, number: int, search: str) -> RunConfig:
    """Return the configuration of a trial: ``base`` with its parameters, and the core and the epochs of its rung."""
    config = with_parameters(base, folder.parameters(number))
    started = folder.started(number)
    if started is None:
        return config
    rung = folder.read_method().rungs[started.rung - 1]
    return rung_config(config, rung, core_address(config, rung, search))


class Reports:
    """Listener that reports validations, each as the best MRR so far.

    The last validation is reported with the result: if it were reported earlier, Tune could stop a run before its final
    evaluation.
    """

    def __init__(self, config: RunConfig, run: Path, report: Report) -> None:
        self._config, self._report = config, report
        self._lines = metric_lines(run)

    def __call__(self, line: Record) -> None:
        self._lines.append(line)
        share = budget_share(self._config, line)
        if not line.get("valid") or share >= 1:
            return
        self._report({MRR: validations(self._lines)[-1][1], SHARE: share})
