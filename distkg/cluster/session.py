"""Joining a Ray cluster, or starting one on this machine for the length of a run."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from distkg.config import ClusterConfig, PoolConfig, RunConfig
from distkg.training.foundation_model import is_foundation
from distkg.training.machine import memory_limit

TRAIN_SLOT = "train_slot"
"""Custom resource that only train workers take.

Ray's elastic policy counts all resources of a node, free or not: CPUs that another actor holds would be
promised to workers that can then never start. A resource of their own makes the count true.
"""

OBJECT_STORE_BYTES = 256 * 2**20
PROBE_SECONDS = 10


class ClusterError(ValueError):
    """A cluster that cannot carry the run; the message says what is missing and what to do."""


def worker_threads(cluster: ClusterConfig) -> int:
    """Threads of one worker: its CPUs, at least one."""
    return max(1, math.floor(cluster.cpus_per_worker))


def worker_environment(cluster: ClusterConfig) -> dict[str, str]:
    """Environment of a worker process, set before it imports torch.

    Huge pages halve the time that large row exchanges spend on page faults; passive waiting keeps the idle
    OpenMP threads of one worker off the cores of the others.
    """
    threads = str(worker_threads(cluster))
    return {
        "THP_MEM_ALLOC_ENABLE": "1",
        "OMP_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "passive",
        "NUMBA_NUM_THREADS": threads,
    }


def worker_resources(cluster: ClusterConfig) -> dict[str, float]:
    """What Ray reserves for one worker; an elastic run also asks for a train slot."""
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker > 0:
        resources["GPU"] = cluster.gpus_per_worker
    if cluster.min_workers is not None:
        resources[TRAIN_SLOT] = 1
    return resources


def run_resources(config: RunConfig, workers: int) -> dict[str, float]:
    """What Ray reserves for a run with so many workers: for them, and for the actors that draw their negatives."""
    needed = {name: amount * workers for name, amount in worker_resources(config.cluster).items()}
    pool = config.negatives.pool
    for name, amount in actor_resources(pool).items():
        needed[name] = needed.get(name, 0) + amount * pool.actors
    return needed


def actor_resources(pool: PoolConfig) -> dict[str, float]:
    """What Ray reserves for one actor that draws negatives."""
    resources = {"CPU": pool.cpus_per_actor}
    if pool.gpus_per_actor > 0:
        resources["GPU"] = pool.gpus_per_actor
    return resources


def set_driver_environment() -> None:
    """Defaults for Ray in this process; what the user has set stays.

    Ray Train reads its settings from the driver's environment and hands them on to controller and workers.
    With its default health check a finished or lost worker would go unnoticed for 2 s.
    """
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def resolve_address(cluster: ClusterConfig) -> str:
    """``local``, ``auto`` or host:port: as configured, else the cluster of a Ray job, else a local one.

    Raises:
        ClusterError: a Ray Client address, from which a run cannot be driven.
    """
    address = cluster.address or ("auto" if os.environ.get("RAY_ADDRESS") else "local")
    target = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if target.startswith(("ray://", "http://", "https://")):
        raise ClusterError(
            f"cluster address {target!r} is a gateway, not a cluster that this process can join. Submit the "
            "run instead: ray job submit --working-dir . -- python jobs/train.py CONFIG.yaml --run RUN"
        )
    return address


@contextmanager
def ray_session(config: RunConfig, runs: int = 1, *, dashboard: bool = False) -> Iterator[None]:
    """Join or start Ray for ``runs`` runs at once, and leave or stop it after; a connection of the caller's is kept.

    A Ray that is started here has a ``dashboard`` only where one is asked for; it costs memory and seconds.
    """
    if ray.is_initialized():
        yield
        return
    _connect(config, runs, dashboard)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(config: RunConfig, runs: int, dashboard: bool) -> None:
    address = resolve_address(config.cluster)
    set_driver_environment()
    if address == "local":
        _start_local(config, runs, dashboard)
    else:
        _join(address)


def _start_local(config: RunConfig, runs: int, dashboard: bool) -> None:
    # Ray counts CPUs, it does not pin them: more workers than cores is slower, not impossible.
    cpus = max(os.cpu_count() or 1, math.ceil(runs * run_resources(config, config.train.workers)["CPU"]))
    # It would say, for every run, that access to the private cluster needs a token that is already in place.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=cpus,
        resources={TRAIN_SLOT: runs * config.train.workers},
        object_store_memory=object_store_bytes(config),
        include_dashboard=dashboard,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


def object_store_bytes(config: RunConfig) -> int:
    """Of a Ray of our own: graphs of a foundation model lie there. Memory is taken when something is put into it."""
    return max(OBJECT_STORE_BYTES, memory_limit() // 4) if is_foundation(config) else OBJECT_STORE_BYTES


def _join(address: str) -> None:
    target = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    try:
        _probe(target)
        ray.init(address=address, logging_level=logging.WARNING)
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at {target or 'this machine'} ({error}). Start one with `ray start --head`, "
            "or set cluster.address=local to run on this machine."
        ) from None


def _probe(target: str) -> None:
    """Fail within seconds where nothing listens; Ray itself would try for minutes."""
    host, _, port = target.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()


def describe_shortage(config: RunConfig, runs: int = 1) -> str | None:
    """A sentence for the operator where the cluster, as it stands, is too small; None where it is not.

    Not an error: an autoscaler may add the nodes.
    """
    total = ray.cluster_resources()
    workers, actors = config.cluster.min_workers or config.train.workers, config.negatives.pool.actors
    needed = {name: runs * amount for name, amount in run_resources(config, workers).items()}
    short = {name: amount for name, amount in needed.items() if total.get(name, 0) < amount}
    if not short:
        return None
    parts = [f"{amount:g} {name} (there are {total.get(name, 0):g})" for name, amount in short.items()]
    hint = f"; start nodes with --resources='{{\"{TRAIN_SLOT}\": N}}'" if TRAIN_SLOT in short else ""
    beside = f" and {runs * actors} negative actors" if actors else ""
    return f"waiting for nodes: {runs * workers} workers{beside} need {', '.join(parts)}{hint}"
