"""Launch on Ray Train: a group of workers, restarted from the newest checkpoint when one is lost."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

import ray
import ray.train
import torch

from distkg.cluster.kept_workers import KeptWorkers
from distkg.cluster.ray_train import no_storage
from distkg.cluster.ray_train.backend import process_group
from distkg.cluster.ray_train.trainer import Trainer
from distkg.cluster.sampling.negative_pool import negative_actors
from distkg.cluster.session.placement import worker_nodes
from distkg.cluster.session.private_ray import on_private_ray
from distkg.cluster.session.ray_session import (
    ClusterError,
    LostClusterError,
    Session,
    ray_session,
    set_driver_environment,
    worker_resources,
)
from distkg.cluster.session.waiting import wait_for_room
from distkg.cluster.session.worker_environment import worker_environment
from distkg.cluster.shared_graphs import share_graphs
from distkg.cluster.watch import run_folder
from distkg.cluster.watch.failures import FailureNotes, cause_of, in_short
from distkg.cluster.watch.lease import Lease
from distkg.cluster.watch.progress_monitor import Display, Listener
from distkg.cluster.watch.ray_train_messages import shorten_worker_messages
from distkg.cluster.watch.run_metrics import count_failure
from distkg.cluster.watch.run_output import Output, Place, following, how_to_resume, report_stop
from distkg.cluster.watch.run_watch import Supervisor
from distkg.cluster.worker_task import WorkerTask
from distkg.config import RunConfig
from distkg.data.storage.file_changes import changed
from distkg.data.storage.objects import is_address
from distkg.data.storage.working_copy import shown
from distkg.termination import Terminated
from distkg.training.run_dir import Record
from distkg.training.services import TrainOnRank


class TrainingError(RuntimeError):
    """Error of a training whose workers were lost more often than ``cluster.max_failures`` allows."""


def train_on_ray(
    train: TrainOnRank,
    config: RunConfig,
    place: Place,
    lease: Lease,
    display: Display,
    listener: Listener,
    kept: KeptWorkers | None,
) -> Record:
    """Train on workers of Ray and return the content of result.json; errors are those of ``launch_training``.

    Args:
        listener: function called with every new line of metrics.jsonl.
        kept: workers that train, and stay; None starts some.
    """

    def failed(record: Record) -> None:
        changed(place.folder / run_folder.FAILURES)
        count_failure(shown(place.folder))
        display.notice(run_folder.describe_failure(record))

    with ray_session(config) as session, following(place.folder, display, listener, failed) as output:
        return _fit(train, config, place, output, session, lease, kept)


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
        report_stop(run, output, session.signals)
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
        report_stop(run, output, session.signals)
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
