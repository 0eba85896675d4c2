"""Training on one worker in this process, without Ray: the same code and the same numbers, and a start of seconds.

Nobody replaces this worker: a run whose process is killed goes on from its newest checkpoint with ``resume``.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path

import torch

from distkg.cluster.session.address import ClusterError, resolve_address
from distkg.cluster.watch import run_folder
from distkg.cluster.watch.lease import Lease, check_lease
from distkg.cluster.watch.progress_monitor import Display, Listener
from distkg.cluster.watch.run_output import following, report_stop
from distkg.config import ClusterConfig, RunConfig
from distkg.data.storage.file_changes import changed
from distkg.kernels.threads import computing_threads
from distkg.sharding.ranks import Ranks
from distkg.termination import Terminated, ending_on_signals
from distkg.training.run_dir import Record
from distkg.training.services import Services, TrainOnRank
from distkg.training.stopping import STOP_SECONDS, StopRequest

OF_A_PROCESS = {"cpus_per_worker", "gpus_per_worker", "memory_per_worker_gb"}
"""Keys of ``cluster`` that act without Ray."""


def trains_alone(config: RunConfig) -> bool:
    """Return whether a run needs nothing of Ray: one worker, no actors, no cluster that is joined, and no key of
    ``cluster`` that acts on Ray alone, such as a number of restarts."""
    wants_ray = config.train.workers > 1 or config.negatives.pool.actors > 0 or _ray_keys(config.cluster)
    return not wants_ray and not _has_joined_ray() and resolve_address(config.cluster) == "local"


def _ray_keys(cluster: ClusterConfig) -> bool:
    asked, default = (each.model_dump(exclude=OF_A_PROCESS) for each in (cluster, ClusterConfig()))
    return asked != default


def _has_joined_ray() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def train_alone(
    train: TrainOnRank, config: RunConfig, folder: Path, lease: Lease, display: Display, listener: Listener
) -> Record:
    """Train in a thread of this process, and return the content of result.json.

    Args:
        folder: run folder; for a run in an object store, the copy of this process.
        listener: function called with every new line of metrics.jsonl.

    Raises:
        ClusterError: there is no GPU for ``cluster.gpus_per_worker``.
        Terminated: a signal ended the run, after a checkpoint was written.
    """
    stop = StopRequest()
    services = Services(check_writer=partial(check_lease, folder, lease.token), stop=stop)

    def work() -> Record:
        with computing_threads(config.cluster.threads):
            return train(config, folder, _one_rank(config.cluster), resume=True, listener=None, services=services)

    with ending_on_signals() as signals, following(folder, display, listener) as output:
        training = _in_thread(work)
        try:
            result = training.result()
        except (KeyboardInterrupt, SystemExit):
            stop.requested = True
            wait([training], STOP_SECONDS)
            report_stop(folder, output, signals)
            # Everything is reported, so the traceback of an interrupt would only distract.
            raise Terminated(signals.received or signal.SIGINT) from None
        except Exception as error:
            run_folder.append_failure(folder, 0, run_folder.in_one_line(error), restart=False)
            changed(folder / run_folder.FAILURES)
            raise
    return result


def _in_thread(work: Callable[[], Record]) -> Future[Record]:
    """Start work in a thread, so that the main thread of this process handles signals."""
    training = Future[Record]()

    def run() -> None:
        try:
            training.set_result(work())
        except BaseException as error:
            training.set_exception(error)

    threading.Thread(target=run, name="training", daemon=True).start()
    return training


def _one_rank(cluster: ClusterConfig) -> Ranks:
    if not cluster.gpus_per_worker:
        return Ranks.single()
    if not torch.cuda.is_available():
        raise ClusterError(
            f"cluster.gpus_per_worker={cluster.gpus_per_worker:g}: torch finds no GPU on this machine. Set it to 0, or "
            "join a cluster with GPUs (cluster.address, RAY_ADDRESS)"
        )
    torch.cuda.set_device(0)
    return Ranks.single("cuda:0")
