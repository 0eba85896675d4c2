"""Plan of a run on this machine, computed before anything starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import torch

from distkg.config import RunConfig
from distkg.data.store.graph_store import Store
from distkg.kernels.threads import computing_threads
from distkg.planning.cluster import Cluster, ClusterFileError, StatedGraph
from distkg.planning.machine import Machine, measure, memory_limit
from distkg.planning.plan import Plan
from distkg.planning.resources import Resources
from distkg.sharding.row_storage import free_bytes, table_folder
from distkg.training.family import family_of
from distkg.training.precision import missing_precisions_here


def plan_run(config: RunConfig, cluster: Cluster | None = None, graph: StatedGraph | None = None) -> Plan:
    """Plan ``config`` on the graphs that it names, with rates measured on this machine in half a second.

    Args:
        cluster: cluster to plan for, with ``train.workers`` on all of its nodes; default: this machine, or the cluster
            that the run joins.
        graph: counts of a graph to plan for; default: the store.

    Raises:
        ConfigError, UnknownNameError, StoreError, SourceError, PlanError: as ``Family.plan``.
    """
    if cluster is not None or graph is not None:
        return _plan_elsewhere(config, cluster, graph)
    family, notes = family_of(config), () if joins_cluster(config) else tuple(missing_precisions_here(config))
    resources = Resources(
        memory=memory_per_worker(config),
        gpu_memory=gpu_memory_per_worker(config),
        disk=disk_per_worker(config),
        workers_of_node=_workers_here(config),
        slowdown=_crowding(config),
        measure=lambda: worker_machine(config),
        here=measure if config.cluster.gpus_per_worker > 0 else None,
    )
    with computing_threads(config.cluster.threads):
        planned = family.plan(config, resources)
    warnings = (*planned.warnings, *_empty_splits(config, family.stores(config)))
    return replace(planned, warnings=warnings, notes=notes)


def _plan_elsewhere(config: RunConfig, cluster: Cluster | None, graph: StatedGraph | None) -> Plan:
    """Plan for a cluster or a graph that is not there; without a cluster, for this machine."""
    family = family_of(config)
    if cluster is None:
        memory, gpu_memory = memory_per_worker(config), gpu_memory_per_worker(config)
        workers, machine = _workers_here(config), lambda: worker_machine(config)
    else:
        memory, gpu_memory = cluster.memory_of_worker, cluster.gpu_memory
        workers, machine = cluster.workers_per_node, lambda: _machine_of(config, cluster)
    resources = Resources(
        memory=memory,
        gpu_memory=gpu_memory,
        workers_of_node=workers,
        measure=machine,
        here=None if cluster is None and config.cluster.gpus_per_worker == 0 else measure,
        elsewhere=cluster is not None,
        graph=graph,
    )
    with computing_threads(config.cluster.threads):
        planned = family.plan(config, resources)
    return (
        planned
        if graph
        else replace(planned, warnings=(*planned.warnings, *_empty_splits(config, family.stores(config))))
    )


def _machine_of(config: RunConfig, cluster: Cluster) -> Machine:
    """Return the rates of a worker of a cluster: as stated, or measured on this machine, alone."""
    if cluster.worker is None and config.cluster.gpus_per_worker > 0 and not torch.cuda.is_available():
        raise ClusterFileError(
            "this machine has no GPU whose rates could be measured: state those of a worker in the cluster's file, "
            "such as worker: {gflops: 15000, memory_gb_per_s: 900}"
        )
    if cluster.worker is not None:
        return cluster.machine(None)
    device = "cuda" if config.cluster.gpus_per_worker > 0 else "cpu"
    return cluster.machine(measure(device))


def check_run(config: RunConfig, at_once: int = 1) -> None:
    """Check that a run of ``config``, one of ``at_once`` concurrent runs, can start; nothing is measured.

    Raises:
        ConfigError, UnknownNameError, StoreError, SourceError, PlanError: as ``Family.plan``.
    """
    available = memory_per_worker(config)
    if available is not None and config.cluster.memory_per_worker_gb is None:
        available //= at_once
    disk = disk_per_worker(config)
    family_of(config).plan(
        config,
        Resources(
            memory=available,
            disk=None if disk is None else disk // at_once,
            workers_of_node=_workers_here(config),
        ),
    )


def _empty_splits(config: RunConfig, stores: Sequence[Store]) -> tuple[str, ...]:
    """Return warnings for valid and test splits that hold no triples."""
    empty = [split for split in ("valid", "test") if not any(store.manifest.triples.get(split) for store in stores)]
    warnings = []
    if "valid" in empty:
        idle = [
            key
            for key, acts in (
                ("train.patience", config.train.patience is not None),
                ("optimizer.schedule: plateau", config.optimizer.schedule == "plateau"),
            )
            if acts
        ]
        warnings.append(
            "valid holds no triples: nothing is validated, and the newest checkpoint is kept, not the best"
            + (f"; {' and '.join(idle)} will do nothing" if idle else "")
        )
    if "test" in empty:
        warnings.append("test holds no triples: the run will end without test metrics")
    return tuple(warnings)


def memory_per_worker(config: RunConfig) -> int | None:
    """Return the bytes that a worker may use: as configured, else an equal part of this machine; None on another
    cluster."""
    if config.cluster.memory_per_worker_gb is not None:
        return int(config.cluster.memory_per_worker_gb * 2**30)
    return None if joins_cluster(config) else memory_limit() // config.train.workers


def gpu_memory_per_worker(config: RunConfig) -> int | None:
    """Return the bytes of a worker's share of this machine's GPU; None for a run on CPUs or on another cluster."""
    share = config.cluster.gpus_per_worker
    if share == 0 or joins_cluster(config) or not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory * min(share, 1))


def disk_per_worker(config: RunConfig) -> int | None:
    """Return the bytes that each worker may write for its part of the table: an equal part of what is free on this
    machine; None for a table in memory, or on another cluster.

    Raises:
        StorageError: there is no such folder, or its files lie in memory.
    """
    if config.train.table_storage != "disk" or joins_cluster(config):
        return None
    return free_bytes(table_folder(config.train.table_folder)) // config.train.workers


def worker_machine(config: RunConfig) -> Machine:
    """Return the rates of one worker, measured on this machine as a sample of the cluster's machines."""
    device = "cuda" if config.cluster.gpus_per_worker > 0 and torch.cuda.is_available() else "cpu"
    with computing_threads(config.cluster.threads):
        machine = measure(device)
    return machine.shared_by(_crowding(config))


def joins_cluster(config: RunConfig) -> bool:
    """Return whether the run joins an existing cluster, whose machines may differ from this one."""
    address = config.cluster.address
    return bool(os.environ.get("RAY_ADDRESS")) if address is None else address != "local"


def _workers_here(config: RunConfig) -> int:
    return 1 if joins_cluster(config) else config.train.workers


def _crowding(config: RunConfig) -> float:
    """Return the number of threads per core of this machine, at least 1."""
    return max(1.0, _workers_here(config) * config.cluster.threads / (os.cpu_count() or 1))
