"""Connection to a Ray cluster, or a private Ray on this machine for the duration of a run."""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any, TypeVar

import ray
from ray._private.services import canonicalize_bootstrap_address

from distkg.cluster.session.address import ClusterError, check_cluster, not_there, resolve_address
from distkg.cluster.session.lost_cluster import ClusterWatch, LostClusterError
from distkg.cluster.session.placement import actor_nodes, worker_nodes
from distkg.cluster.session.private_ray import METRICS_PORT, PrivateRay, free_port, private_ray
from distkg.cluster.session.worker_environment import worker_environment
from distkg.config import ClusterConfig, RunConfig
from distkg.planning.machine import memory_limit
from distkg.termination import SignalHandling, ending_on_signals
from distkg.training.family import family_of

TRAIN_SLOT = "train_slot"
"""Custom resource that only train workers take.

Ray's elastic policy counts all resources of a node, free or not: CPUs that another actor holds would be counted for
workers that can then never start. With a resource of their own the count is correct.
"""

MEMORY = "memory"
"""Ray's resource of memory, in bytes."""

OBJECT_STORE_BYTES = 256 * 2**20
NOTICE_SECONDS = 1.0

T = TypeVar("T")


def worker_resources(cluster: ClusterConfig) -> dict[str, float]:
    """Return the Ray resources of one worker; an elastic run also requires a train slot."""
    resources = {"CPU": cluster.cpus_per_worker, **worker_nodes(cluster).resources}
    if cluster.gpus_per_worker > 0:
        resources["GPU"] = cluster.gpus_per_worker
    if cluster.min_workers is not None:
        resources[TRAIN_SLOT] = 1
    return resources


def run_resources(config: RunConfig, workers: int) -> dict[str, float]:
    """Return the Ray resources of a run with ``workers`` workers and with the actors that draw their negatives."""
    needed = {name: amount * workers for name, amount in worker_resources(config.cluster).items()}
    actors = config.negatives.pool.actors
    for name, amount in actor_resources(config).items() if actors else ():
        needed[name] = needed.get(name, 0) + amount * actors
    return needed


def actor_resources(config: RunConfig) -> dict[str, float]:
    """Return the Ray resources of one actor that draws negatives; its memory, in bytes, is that of the plan.

    Workers reserve no memory: their plan is compared with their machine before the run starts, and kept workers serve
    runs of several sizes. Actors come later, and Ray would put several on a node that has no memory left.
    """
    pool = config.negatives.pool
    resources = {"CPU": pool.cpus_per_actor, **actor_nodes(config.cluster).resources}
    if pool.gpus_per_actor > 0:
        resources["GPU"] = pool.gpus_per_actor
    if planned := _actor_bytes(config.model_dump_json()):
        resources[MEMORY] = planned
    return resources


@lru_cache(maxsize=8)  # messages about a cluster that is too small are repeated
def _actor_bytes(config: str) -> int:
    run = RunConfig.model_validate_json(config)
    return family_of(run).actor_bytes(run)


def set_driver_environment() -> None:
    """Set defaults for Ray in this process; variables that the user has set are kept.

    Ray Train reads its settings from the driver's environment and passes them to controller and workers. With its
    default health check a finished or lost worker would go unnoticed for 2 s. It starts no actor that watches for
    draining nodes, because the supervisor of a run does.
    """
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "86400",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_SCHEDULER_EVENTS": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


class Session:
    """Open connection to Ray.

    Attributes:
        signals: signals received by this process.
        private: the processes of a private Ray; None on a cluster.
    """

    def __init__(self, signals: SignalHandling, private: PrivateRay | None = None) -> None:
        self.signals, self.private = signals, private
        self._under_way: Future[Any] | None = None
        self._watch = ClusterWatch(self._fail)

    @property
    def lost(self) -> bool:
        """True if Ray in this process is unusable."""
        return self._watch.reason is not None

    def run(self, work: Callable[[], T]) -> T:
        """Run work on the cluster and return its result. It runs in a thread of its own, so that this thread handles
        signals.

        Raises:
            LostClusterError: the cluster died during the work.
        """
        self._under_way = future = Future[T]()
        threading.Thread(target=_fulfil, args=(future, work), name="on-cluster", daemon=True).start()
        try:
            return future.result()
        except ray.exceptions.RayError:
            time.sleep(NOTICE_SECONDS)  # the loss of the cluster may be noticed only now
            if self._watch.reason is not None:
                raise LostClusterError(self._watch.reason) from None
            raise

    def give_up(self, error: Exception) -> None:
        """Make :meth:`run` raise an error, whatever the work is doing."""
        if self._under_way is not None:
            with suppress(InvalidStateError):
                self._under_way.set_exception(error)

    def _fail(self, reason: str) -> None:
        if self.private is not None:
            self.private.lost = True
        self.give_up(LostClusterError(reason))

    def close(self) -> None:
        self._watch.stop()


def _fulfil(future: Future[T], work: Callable[[], T]) -> None:
    try:
        value = work()
    except BaseException as error:
        outcome: Callable[[], None] = partial(future.set_exception, error)
    else:
        outcome = partial(future.set_result, value)
    with suppress(InvalidStateError):  # ended by give_up in the meantime
        outcome()


@contextmanager
def ray_session(config: RunConfig, runs: int = 1, *, dashboard: bool = False) -> Iterator[Session]:
    """Connect to Ray or start it for ``runs`` concurrent runs, and disconnect or stop it afterwards; an existing
    connection of the caller is kept.

    A private Ray has a ``dashboard`` only on request; it costs memory and seconds.

    Raises:
        ClusterError: there is no such cluster, or this process cannot join it.
    """
    with ending_on_signals() as signals, _connected(config, runs, dashboard, signals) as private:
        session = Session(signals, private)
        try:
            yield session
        finally:
            session.close()
            if session.lost:
                # Ray's exit handler would end this process with a dump of its own.
                atexit.unregister(ray.shutdown)


@contextmanager
def _connected(config: RunConfig, runs: int, dashboard: bool, signals: SignalHandling) -> Iterator[PrivateRay | None]:
    if ray.is_initialized():
        yield None
        return
    address = resolve_address(config.cluster)
    set_driver_environment()
    if address == "local":
        _refuse_labels(config)
        # No GPU's libraries have been tried in a forked process.
        gpus = config.cluster.gpus_per_worker or config.negatives.pool.gpus_per_actor
        forked = None if gpus else worker_environment(config.cluster)
        with private_ray(signals, forked, **_local_options(config, runs, dashboard)) as private:
            yield private
        return
    _join(address)
    signals.install()  # Ray has set a handler of its own
    try:
        yield None
    finally:
        ray.shutdown()


def _refuse_labels(config: RunConfig) -> None:
    """Refuse label selectors for a Ray that starts on this machine, whose one node has no labels of anybody.

    Raises:
        ClusterError: names the key.
    """
    for nodes in (worker_nodes(config.cluster), actor_nodes(config.cluster)):
        if nodes.labels:
            raise ClusterError(
                f"cluster.{nodes.of}label_selector chooses among the nodes of a cluster, and this run starts Ray on "
                "this machine alone. Leave the key out, or join a cluster (cluster.address, RAY_ADDRESS)"
            )


def _local_options(config: RunConfig, runs: int, dashboard: bool) -> dict[str, Any]:
    # Ray counts CPUs without pinning them: more workers than cores are slower, but possible.
    needed = run_resources(config, config.train.workers)
    return {
        "num_cpus": max(os.cpu_count() or 1, math.ceil(runs * needed["CPU"])),
        # By default Ray counts 70 % of the memory that is free at its start, and a plan counts on all memory of the
        # machine: what fits by the plan must have its place.
        "_memory": max(memory_limit(), math.ceil(runs * needed.get(MEMORY, 0))),
        "resources": {TRAIN_SLOT: runs * config.train.workers},
        "object_store_memory": object_store_bytes(config, runs),
        "include_dashboard": dashboard,
        **({} if config.cluster.metrics_port is None else {METRICS_PORT: free_port(config.cluster.metrics_port)}),
    }


def object_store_bytes(config: RunConfig, runs: int = 1) -> int:
    """Return the size of a private Ray's object store for ``runs`` concurrent runs. It holds the graphs that a family
    of models shares, and the vectors that workers publish to negative actors, beside small objects. Memory is allocated
    when objects are stored."""
    family = family_of(config)
    if family.shares_graphs:
        return max(OBJECT_STORE_BYTES, memory_limit() // 4)
    return OBJECT_STORE_BYTES + runs * family.published_bytes(config)


def _join(address: str) -> None:
    named = os.environ.get("RAY_ADDRESS", "")
    target = named if address == "auto" and named != "auto" else address
    try:
        if target == "auto":
            target = canonicalize_bootstrap_address("auto") or ""
        check_cluster(target, automatic=address == "auto" and not named)
        ray.init(address=address, logging_level=logging.WARNING)
    except OSError as error:
        raise not_there("" if target == "auto" else target, error) from None
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise ClusterError(f"the cluster at {target} cannot be joined: {_in_one_line(error)}") from None


def _in_one_line(error: Exception) -> str:
    """Return Ray's message on one line; it may be a table over several lines, such as that of two versions."""
    return " ".join(str(error).split())[:600]
