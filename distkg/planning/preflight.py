"""Plan of a run on this machine, computed before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from distkg.config import RunConfig
from distkg.data.store.graph_store import Store
from distkg.planning.machine import Machine, measure, memory_limit
from distkg.planning.plan import Plan
from distkg.planning.resources import Resources
from distkg.training.family import family_of
from distkg.training.precision import missing_precisions_here


def plan_run(config: RunConfig) -> Plan:
    """Plan ``config`` on the graphs that it names, with rates measured on this machine in half a second.

    Raises:
        ConfigError, UnknownNameError, StoreError, SourceError, PlanError: as ``Family.plan``.
    """
    family, notes = family_of(config), () if joins_cluster(config) else tuple(missing_precisions_here(config))
    resources = Resources(
        memory=memory_per_worker(config),
        gpu_memory=gpu_memory_per_worker(config),
        workers_of_node=_workers_here(config),
        slowdown=_crowding(config),
        measure=lambda: worker_machine(config),
    )
    with _threads(_worker_threads(config)):
        planned = family.plan(config, resources)
    warnings = (*planned.warnings, *_empty_splits(config, family.stores(config)))
    return replace(planned, warnings=warnings, notes=notes)


def check_run(config: RunConfig, at_once: int = 1) -> None:
    """Check that a run of ``config``, one of ``at_once`` concurrent runs, can start; nothing is measured.

    Raises:
        ConfigError, UnknownNameError, StoreError, SourceError, PlanError: as ``Family.plan``.
    """
    available = memory_per_worker(config)
    if available is not None and config.cluster.memory_per_worker_gb is None:
        available //= at_once
    family_of(config).plan(config, Resources(memory=available, workers_of_node=_workers_here(config)))


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


def worker_machine(config: RunConfig) -> Machine:
    """Return the rates of one worker, measured on this machine as a sample of the cluster's machines."""
    device = "cuda" if config.cluster.gpus_per_worker > 0 and torch.cuda.is_available() else "cpu"
    with _threads(_worker_threads(config)):
        machine = measure(device)
    return machine.shared_by(_crowding(config))


def joins_cluster(config: RunConfig) -> bool:
    """Return whether the run joins an existing cluster, whose machines may differ from this one."""
    address = config.cluster.address
    return bool(os.environ.get("RAY_ADDRESS")) if address is None else address != "local"


def _worker_threads(config: RunConfig) -> int:
    return max(1, int(config.cluster.cpus_per_worker))


def _workers_here(config: RunConfig) -> int:
    return 1 if joins_cluster(config) else config.train.workers


def _crowding(config: RunConfig) -> float:
    """Return the number of threads per core of this machine, at least 1."""
    return max(1.0, _workers_here(config) * _worker_threads(config) / (os.cpu_count() or 1))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
