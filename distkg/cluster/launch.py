"""Training on Ray Train: a group of workers, restarted from the newest checkpoint when one is lost."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import ray
import ray.train
import torch

from distkg.cluster import no_storage
from distkg.cluster.kept_workers import KeptWorkers
from distkg.cluster.sampling.negative_pool import negative_actors
from distkg.cluster.session.placement import worker_nodes
from distkg.cluster.session.private_ray import on_private_ray
from distkg.cluster.session.ray_session import (
    ClusterError,
    LostClusterError,
    Session,
    ray_session,
    set_driver_environment,
    worker_environment,
    worker_resources,
)
from distkg.cluster.session.waiting import wait_for_room
from distkg.cluster.shared_graphs import share_graphs
from distkg.cluster.train_backend import process_group
from distkg.cluster.trainer import Trainer
from distkg.cluster.watch import run_folder
from distkg.cluster.watch.failures import FailureNotes, cause_of, describe_failure, in_short
from distkg.cluster.watch.lease import Lease, claimed
from distkg.cluster.watch.progress_monitor import (
    Display,
    Follower,
    LineTail,
    Listener,
    Record,
    make_display,
    with_warnings,
)
from distkg.cluster.watch.ray_train_messages import shorten_worker_messages
from distkg.cluster.watch.run_metrics import count_failure
from distkg.cluster.watch.run_watch import Supervisor
from distkg.cluster.worker_task import TrainOnRank, WorkerTask
from distkg.config import RunConfig
from distkg.data.storage.file_changes import changed
from distkg.data.storage.objects import StoreUnavailableError, is_address
from distkg.data.storage.working_copy import copy_of, folder_at, shown
from distkg.printable import printable, printable_lines
from distkg.redaction import redact
from distkg.termination import Terminated
from distkg.training.resume import check_resume, notices
from distkg.training.run_dir import RunFolder

LOOK_SECONDS, FETCH_SECONDS = 0.25, 2.0
LAST_LINES_SECONDS = 2.0  # maximum wait for the last lines of workers when a run is stopped


class TrainingError(RuntimeError):
    """Error of a training whose workers were lost more often than ``cluster.max_failures`` allows."""


def launch_training(
    config: RunConfig,
    run: str | Path,
    *,
    resume: bool = False,
    accept_changes: bool = False,
    listener: Listener | None = None,
) -> Record:
    """Train on ``config.train.workers`` Ray Train workers and return the content of result.json.

    Joins the cluster named by ``cluster.address`` or by RAY_ADDRESS, as in a job; otherwise starts Ray on this
    machine for the duration of the run. A killed worker is replaced, at most ``cluster.max_failures`` times,
    and the run continues from its newest checkpoint; each loss is a line in failures.jsonl. An error that a
    restart would repeat, such as a store that cannot be read, ends the run at once and is raised here as in the
    worker.

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


@dataclass(frozen=True)
class Place:
    """Run folder of a launch.

    Attributes:
        folder: folder on this machine; for a run in an object store, the driver's copy.
        address: path or address from which workers open the folder.
    """

    folder: Path
    address: str


def _launch(
    train: TrainOnRank,
    config: RunConfig,
    place: Place,
    lease: Lease,
    listener: Listener | None,
    kept: KeptWorkers | None,
) -> Record:
    folder, display = place.folder, make_display(config.train.epochs)

    def failed(record: Record) -> None:
        changed(folder / run_folder.FAILURES)
        count_failure(shown(folder))
        display.notice(describe_failure(record))

    follower = Follower(
        [
            (LineTail(folder / run_folder.METRICS), with_warnings(listener or display.metrics, display)),
            (LineTail(folder / run_folder.FAILURES), failed),
            (LineTail(folder / run_folder.NOTICES), lambda record: display.notice(record["notice"])),
        ],
        *_look_at(folder),
    )
    with ray_session(config) as session, display, follower:
        result = _fit(train, config, place, Output(display, follower), session, lease, kept)
    if follower.error is not None:
        raise follower.error
    return result


@dataclass(frozen=True)
class Output:
    """Terminal of the driver.

    Attributes:
        display: display of the progress.
        follower: thread that passes the lines of workers to the display.
    """

    display: Display
    follower: Follower

    def notice(self, text: str) -> None:
        self.display.notice(text)

    def last_line(self, text: str) -> None:
        """Print a line after all lines of workers."""
        self.follower.finish(LAST_LINES_SECONDS)
        self.display.notice(text)


def _look_at(folder: Path) -> tuple[float, Callable[[], None]]:
    """Return how often to look at the files that workers write (s), and how to fetch them."""
    copy = copy_of(folder)
    if copy is None:
        return LOOK_SECONDS, lambda: None
    copy.keep(run_folder.FAILURES)  # Ray Train's controller writes it on this node
    written = (run_folder.METRICS, run_folder.NOTICES)

    def fetch() -> None:
        with suppress(StoreUnavailableError):  # workers need the store more than the display does
            copy.refresh(written)

    return FETCH_SECONDS, fetch


def check_scaling(config: RunConfig) -> None:
    """Validate ``cluster.min_workers``.

    Raises:
        ClusterError: cluster.min_workers is larger than train.workers.
    """
    low, high = config.cluster.min_workers, config.train.workers
    if low is not None and low > high:
        raise ClusterError(f"cluster.min_workers={low} is more than train.workers={high}. Lower it or add workers.")


def _fit(
    train: TrainOnRank,
    config: RunConfig,
    place: Place,
    output: Output,
    session: Session,
    lease: Lease,
    kept: KeptWorkers | None,
) -> Record:
    run = place.folder
    try:
        if kept is None or not kept.are_ready():  # those that wait have their room
            wait_for_room(config, output.notice, nodes_may_come=session.private is None)
        set_driver_environment()
        graphs = share_graphs(config)
        task = WorkerTask(train, config.model_dump(), place.address, graphs, lease.token)
        notes = FailureNotes(run, config.cluster.max_failures)
        fit = partial(kept.train, task, notes) if kept else partial(_fit_on_ray_train, task, config, place, notes)
        with (
            negative_actors(config, shown(run), graphs),
            Supervisor(config, run, output.notice, session.give_up) as supervisor,
        ):
            result = _fit_or_stop(fit, run, supervisor, session, output)
    except (KeyboardInterrupt, SystemExit):
        _report_stop(run, output, session)
        # Everything is reported, so the traceback of an interrupt would only distract.
        raise Terminated(session.signals.received or signal.SIGINT) from None
    except ray.train.ControllerError as error:
        raise error.controller_failure from error
    except ray.train.WorkerGroupError as error:
        raise _too_many_failures(config, run, error) from error
    except ray.exceptions.RayActorError:
        raise TrainingError(f"Ray Train's controller has died. {how_to_resume(run)}") from None
    shutil.rmtree(run / run_folder.LAUNCH, ignore_errors=True)
    return result


def _fit_or_stop(
    fit: Callable[[], Record], run: Path, supervisor: Supervisor, session: Session, output: Output
) -> Record:
    try:
        result = session.run(fit)
    except (KeyboardInterrupt, SystemExit):
        # Inside the context of the actors, because workers may need them until they have stopped.
        supervisor.stop()
        _report_stop(run, output, session)
        raise
    except LostClusterError as error:
        lost = LostClusterError(f"the Ray cluster is lost: {error}. {how_to_resume(run)}")
        output.display.__exit__()
        session.signals.end_command(f"error: {lost}", 1)
        raise lost from None
    except ClusterError as error:  # workers were lost, or left their nodes, and there is no room for others
        raise ClusterError(f"{error}. {how_to_resume(run)}") from None
    if "stopped" in result:  # the sender of the stop request ends this process
        raise Terminated(signal.SIGTERM)
    return result


def _report_stop(run: Path, output: Output, session: Session) -> None:
    if not session.signals.reported:
        session.signals.reported = True
        output.last_line(describe_stop(run, session.signals.name))


def describe_stop(run: Path, by: str) -> str:
    """Return the last line of output of a run that a signal has ended."""
    step = run_folder.newest_step(run)
    how = "before the first checkpoint" if step is None else f"with a checkpoint at step {step:,}"
    return f"stopped by {by}, {how}. {how_to_resume(run)}"


def how_to_resume(run: Path) -> str:
    """Return the sentence that says how to resume a run."""
    return f"Continue with the same command and --resume; the run is in {printable(shown(run))}"


def _fit_on_ray_train(task: WorkerTask, config: RunConfig, place: Place, notes: FailureNotes) -> Record:
    trainer = Trainer(
        _on_ray_train(task),
        backend_config=process_group(config.cluster.gpus_per_worker),
        scaling_config=scaling(config),
        run_config=_ray_run(config, place, notes),
    )
    return dict(trainer.fit().return_value)


def scaling(config: RunConfig) -> ray.train.ScalingConfig:
    """Return the number of workers, a range for an elastic run, and the resources and node labels of each."""
    workers, min_workers = config.train.workers, config.cluster.min_workers
    return ray.train.ScalingConfig(
        num_workers=workers if min_workers is None else (min_workers, workers),
        use_gpu=config.cluster.gpus_per_worker > 0,
        resources_per_worker=worker_resources(config.cluster),
        label_selector=dict(worker_nodes(config.cluster).labels) or None,
    )


def _ray_run(config: RunConfig, place: Place, notes: FailureNotes) -> ray.train.RunConfig:
    run, in_store = place.folder, is_address(place.address)
    # Ray Train checks before the start that every worker's node sees the storage path, which is in the run folder.
    return ray.train.RunConfig(
        name=PurePosixPath(shown(run)).name,  # by which the dashboard and Ray Train's metrics call the run
        storage_path=no_storage.PATH if in_store else str(run / run_folder.LAUNCH),
        storage_filesystem=no_storage.no_storage() if in_store else None,
        failure_config=ray.train.FailureConfig(max_failures=config.cluster.max_failures),
        worker_runtime_env={"env_vars": worker_environment(config.cluster)},
        callbacks=[notes],
        logging_config=ray.train.LoggingConfig(log_level="WARNING"),
    )


def _on_ray_train(task: WorkerTask) -> Callable[[], Record]:
    # A private Ray has no dashboard, nor the actor with which workers report.
    evaluated = None if on_private_ray() else report_to_ray_train

    def train() -> Record:  # pickled by value, so that workers do not import this module
        shorten_worker_messages()
        device = torch.device("cpu")
        if task.config["cluster"]["gpus_per_worker"]:
            from ray.train.torch import get_device  # its import takes a third of a second

            device = get_device()
        return task.on_worker(ray.train.get_context().get_world_rank(), device, evaluated)

    return train


def report_to_ray_train(line: Record) -> None:
    """Report a validation to Ray Train, for its metrics and its page of the dashboard; called by every worker."""
    figures = {key: line[key] for key in ("epoch", "step", "loss", "triples_per_second")}
    ray.train.report({**figures, "valid_mrr": line["valid"]["mrr"]})


def _too_many_failures(config: RunConfig, run: Path, error: ray.train.WorkerGroupError) -> TrainingError:
    causes = {rank: in_short(cause_of(failure)) for rank, failure in sorted(error.worker_failures.items())}
    listed = "\n".join(f"  worker {rank}: {cause}" for rank, cause in causes.items())
    return TrainingError(
        f"training in {shown(run)} stopped after {config.cluster.max_failures} restarts (cluster.max_failures); "
        f"the last failure:\n{listed}\nContinue with --resume once the cause is gone; "
        f"{shown(run / run_folder.FAILURES)} lists every failure."
    )
