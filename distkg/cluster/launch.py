"""Training on Ray Train: a group of workers, restarted from the newest checkpoint when one is lost."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device

from distkg.cluster.process_group import process_group
from distkg.cluster.sampling.negative_pool import actors_of_worker, negative_actors
from distkg.cluster.session.ray_session import (
    ClusterError,
    LostClusterError,
    Session,
    ray_session,
    set_driver_environment,
    worker_environment,
    worker_resources,
    worker_threads,
)
from distkg.cluster.session.waiting import wait_for_room
from distkg.cluster.shared_graphs import SharedGraphs, graphs_of_node, share_graphs
from distkg.cluster.watch import run_folder
from distkg.cluster.watch.lease import Lease, check_lease, claimed
from distkg.cluster.watch.progress_monitor import (
    Display,
    Follower,
    LineTail,
    Listener,
    Record,
    make_display,
    with_warnings,
)
from distkg.cluster.watch.run_watch import Supervisor, signs_of_life
from distkg.config import RunConfig, parse_config
from distkg.printable import printable, printable_lines
from distkg.redaction import redact
from distkg.sharding.ranks import Ranks
from distkg.termination import Terminated
from distkg.training.resume import check_resume, notices
from distkg.training.run_dir import RunFolder
from distkg.training.services import Services

LAST_LINES_SECONDS = 2.0  # maximum wait for the last lines of workers when a run is stopped

# Errors that a restart would repeat. A lost peer raises RuntimeError, a full disk OSError.
MISTAKES = (ValueError, TypeError, LookupError, AttributeError, ImportError, AssertionError)


class TrainOnRank(Protocol):
    """Function that runs a training on one rank; the result is that of rank 0."""

    def __call__(
        self,
        config: RunConfig,
        run: Path,
        ranks: Ranks,
        *,
        resume: bool,
        listener: Listener | None,
        services: Services,
    ) -> Record: ...


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
        run: run folder, on storage that every node sees.
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
) -> Record:
    """Launch any training function; arguments and errors are those of `launch_training`."""
    check_scaling(config)
    folder = run_folder.absolute_run(run)
    config = run_folder.absolute_store(config)
    with claimed(folder, resume=resume, private=config.private) as lease:
        changes = check_resume(config, RunFolder(folder), accept_changes=accept_changes) if resume else []
        for line in notices(changes, config):
            print(printable_lines(redact(line)), flush=True)
        return _launch(train, config, folder, lease, listener)


def _launch(train: TrainOnRank, config: RunConfig, folder: Path, lease: Lease, listener: Listener | None) -> Record:
    display = make_display(config.train.epochs)
    follower = Follower(
        [
            (LineTail(folder / run_folder.METRICS), with_warnings(listener or display.metrics, display)),
            (LineTail(folder / run_folder.FAILURES), lambda record: display.notice(describe_failure(record))),
            (LineTail(folder / run_folder.NOTICES), lambda record: display.notice(record["notice"])),
        ]
    )
    with ray_session(config) as session, display, follower:
        result = _fit(train, config, folder, Output(display, follower), session, lease)
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


def check_scaling(config: RunConfig) -> None:
    """Validate ``cluster.min_workers``.

    Raises:
        ClusterError: cluster.min_workers is larger than train.workers.
    """
    low, high = config.cluster.min_workers, config.train.workers
    if low is not None and low > high:
        raise ClusterError(f"cluster.min_workers={low} is more than train.workers={high}. Lower it or add workers.")


def describe_failure(record: Record) -> str:
    """Format a line of failures.jsonl as a sentence.

    >>> describe_failure({"time": 0.0, "rank": 1, "error": "its node was lost", "restart": True})
    'worker 1 failed: its node was lost. Restarting from the newest checkpoint.'
    """
    outcome = "Restarting from the newest checkpoint." if record["restart"] else "The run ends here."
    return f"worker {record['rank']} failed: {record['error']}. {outcome}"


def _fit(train: TrainOnRank, config: RunConfig, run: Path, output: Output, session: Session, lease: Lease) -> Record:
    try:
        wait_for_room(config, output.notice, nodes_may_come=session.private is None)
        set_driver_environment()
        graphs = share_graphs(config)
        trainer = _trainer(train, config, run, graphs, lease)
        with (
            negative_actors(config, str(run), graphs),
            Supervisor(config, run, output.notice, session.give_up) as supervisor,
        ):
            result = _fit_or_stop(trainer, run, supervisor, session, output)
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


def _fit_or_stop(trainer: TorchTrainer, run: Path, supervisor: Supervisor, session: Session, output: Output) -> Record:
    try:
        result = dict(session.run(trainer.fit).return_value)
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
    return f"Continue with the same command and --resume; the run is in {printable(str(run))}"


def _trainer(train: TrainOnRank, config: RunConfig, run: Path, graphs: SharedGraphs, lease: Lease) -> TorchTrainer:
    return TorchTrainer(
        _train_loop(train),
        train_loop_config={"config": config.model_dump(), "run": str(run), "graphs": graphs, "lease": lease.token},
        torch_config=process_group(config.cluster.gpus_per_worker),
        scaling_config=scaling(config),
        run_config=_ray_run(config, run),
    )


def scaling(config: RunConfig) -> ray.train.ScalingConfig:
    """Return the number of workers, a range for an elastic run, and the resources of each."""
    workers, min_workers = config.train.workers, config.cluster.min_workers
    return ray.train.ScalingConfig(
        num_workers=workers if min_workers is None else (min_workers, workers),
        use_gpu=config.cluster.gpus_per_worker > 0,
        resources_per_worker=worker_resources(config.cluster),
    )


def _ray_run(config: RunConfig, run: Path) -> ray.train.RunConfig:
    # Ray Train checks before the start that every worker's node sees the storage path, which is the run folder.
    return ray.train.RunConfig(
        name=run_folder.LAUNCH,
        storage_path=str(run),
        failure_config=ray.train.FailureConfig(max_failures=config.cluster.max_failures),
        worker_runtime_env={"env_vars": worker_environment(config.cluster)},
        callbacks=[FailureNotes(run, config.cluster.max_failures)],
        logging_config=ray.train.LoggingConfig(log_level="WARNING"),
    )


def _train_loop(train: TrainOnRank) -> Callable[[dict[str, Any]], Record]:
    def loop(settings: dict[str, Any]) -> Record:
        config = parse_config(settings["config"], "the launched run")
        torch.set_num_threads(worker_threads(config.cluster))
        run, graphs = settings["run"], settings["graphs"]
        with signs_of_life(run, ray.train.get_context().get_world_rank()) as stop:
            ranks = Ranks.from_process_group(get_device())
            pool_of = actors_of_worker(config, run, ranks, graphs)
            check_writer = partial(check_lease, Path(run), settings["lease"])
            services = Services(pool_of, graphs_of_node(graphs), check_writer=check_writer, stop=stop)
            # A new launch starts in an empty folder, so a checkpoint there means that this group is a replacement.
            return train(config, Path(run), ranks, resume=True, listener=None, services=services)

    return loop


class FailureNotes(ray.train.UserCallback):
    """Callback that writes lost workers to failures.jsonl, and ends the run on an error that a restart would repeat."""

    def __init__(self, run: Path, max_failures: int) -> None:
        self._run = run
        self._restarts_left = max_failures

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        causes = {rank: _cause(error) for rank, error in worker_exceptions.items()}
        mistake = next((cause for cause in causes.values() if isinstance(cause, MISTAKES)), None)
        restart = mistake is None and self._restarts_left > 0
        for rank, cause in sorted(causes.items()):
            error = run_folder.take_hung(self._run, rank) or _in_short(cause)
            run_folder.append_failure(self._run, rank, error, restart=restart)
        self._restarts_left -= 1
        if mistake is not None:
            # Raising here makes Ray Train's controller end the run instead of restarting it.
            raise mistake


def _cause(error: BaseException) -> BaseException:
    """Return the error of a worker without the wrapping of Ray Train."""
    for wrapping in ("_base_exc", "health_check_failure"):
        error = getattr(error, wrapping, error)
    return error


def _in_short(error: BaseException) -> str:
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process died (killed, out of memory, or its node was lost)"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:500].rstrip(".")


def _too_many_failures(config: RunConfig, run: Path, error: ray.train.WorkerGroupError) -> TrainingError:
    causes = {rank: _in_short(_cause(failure)) for rank, failure in sorted(error.worker_failures.items())}
    listed = "\n".join(f"  worker {rank}: {cause}" for rank, cause in causes.items())
    return TrainingError(
        f"training in {run} stopped after {config.cluster.max_failures} restarts (cluster.max_failures); "
        f"the last failure:\n{listed}\nContinue with --resume once the cause is gone; "
        f"{run / run_folder.FAILURES} lists every failure."
    )
