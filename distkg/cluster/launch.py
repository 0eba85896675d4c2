"""Launch of a training: in this process where one worker is enough, else on workers of Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distkg.cluster.one_process import train_alone, trains_alone
from distkg.cluster.session.address import ClusterError
from distkg.cluster.watch import run_folder
from distkg.cluster.watch.lease import Lease, claimed
from distkg.cluster.watch.progress_monitor import Listener, Record, make_display, with_warnings
from distkg.cluster.watch.run_output import Place
from distkg.config import RunConfig
from distkg.data.storage.objects import is_address
from distkg.data.storage.working_copy import folder_at
from distkg.printable import printable_lines
from distkg.redaction import redact
from distkg.training.resume import check_resume, notices
from distkg.training.run_dir import RunFolder
from distkg.training.services import TrainOnRank

if TYPE_CHECKING:
    from distkg.cluster.kept_workers import KeptWorkers


def launch_training(
    config: RunConfig,
    run: str | Path,
    *,
    resume: bool = False,
    accept_changes: bool = False,
    listener: Listener | None = None,
) -> Record:
    """Train on ``config.train.workers`` workers and return the content of result.json.

    Joins the cluster named by ``cluster.address`` or by RAY_ADDRESS, as in a job; otherwise starts Ray on this
    machine for the duration of the run. One worker without actors, and without a cluster that is named or joined,
    trains in this process, without Ray, and nobody replaces it.

    On Ray, a killed worker is replaced, at most ``cluster.max_failures`` times, and the run continues from its newest
    checkpoint; each loss is a line in failures.jsonl. An error that a restart would repeat, such as a store that cannot
    be read, ends the run at once and is raised here as in the worker.

    Args:
        config: configuration of the run; a relative ``data.store`` is relative to the current directory.
        run: run folder, on storage that every node sees, or its address in an object store.
        resume: continue the run in this folder; in an empty folder, start a new one.
        accept_changes: continue although settings with ``resume: course`` have changed; the result lists them.
        listener: function called in this process with every new line of metrics.jsonl; by default the progress is
            shown, as a bar on a terminal and as lines elsewhere.

    Raises:
        RunFolderError: the folder is not free and ``resume`` is not given, or is not a shared folder. The subclass
            RunInUseError: another driver writes to the folder.
        ResumeError, StoreMismatchError: the run cannot continue with this configuration or store; nothing has changed.
        ClusterError: there is no such cluster, or its settings contradict each other.
        TrainingError: workers were lost too often.
        LostClusterError: the cluster died.
        Terminated: a signal (also Ctrl-C) ended the run after a checkpoint was written.
    """
    from distkg.training.run import train_on_rank

    train = partial(train_on_rank, accept_changes=accept_changes)
    return run_on_workers(train, config, run, resume=resume, accept_changes=accept_changes, listener=listener)


def run_on_workers(
    train: TrainOnRank,
    config: RunConfig,
    run: str | Path,
    *,
    resume: bool = False,
    accept_changes: bool = False,
    listener: Listener | None = None,
    kept: KeptWorkers | None = None,
) -> Record:
    """Launch any training function; arguments and errors are those of `launch_training`.

    With ``kept``, these workers train, and stay for the next run; else Ray Train starts some.
    """
    check_scaling(config)
    config = run_folder.absolute_store(config)
    with folder_at(run) as opened, _claimed(opened, resume=resume, private=config.private) as (folder, lease):
        changes = check_resume(config, RunFolder(folder), accept_changes=accept_changes) if resume else []
        for line in notices(changes, config):
            print(printable_lines(redact(line)), flush=True)
        place = Place(folder, str(run) if is_address(run) else str(folder))
        return _launch(train, config, place, lease, listener, kept)


@contextmanager
def _claimed(run: Path, *, resume: bool, private: bool) -> Iterator[tuple[Path, Lease]]:
    folder = run_folder.absolute_run(run)
    with claimed(folder, resume=resume, private=private) as lease:
        yield folder, lease


def _launch(
    train: TrainOnRank,
    config: RunConfig,
    place: Place,
    lease: Lease,
    listener: Listener | None,
    kept: KeptWorkers | None,
) -> Record:
    display = make_display(config.train.epochs)
    heard = with_warnings(listener or display.metrics, display)
    if kept is None and trains_alone(config):
        return train_alone(train, config, place.folder, lease, display, heard)
    from distkg.cluster.ray_train.launch import train_on_ray  # here, because to import Ray takes seconds

    return train_on_ray(train, config, place, lease, display, heard, kept)


def check_scaling(config: RunConfig) -> None:
    """Validate ``cluster.min_workers``.

    Raises:
        ClusterError: cluster.min_workers is larger than train.workers.
    """
    low, high = config.cluster.min_workers, config.train.workers
    if low is not None and low > high:
        raise ClusterError(f"cluster.min_workers={low} is more than train.workers={high}. Lower it or add workers.")
