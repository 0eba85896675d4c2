"""Plan of a run, computed before anything starts: bytes per worker and seconds per epoch.

Memory is an upper bound. Time is an estimate from rates measured on this machine, and ignores other load. Each family
of models computes its own plan (`distkg.embedding.plan`, `distkg.foundation.plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from distkg.config import ConfigError, RunConfig

NOTEWORTHY = 10 << 20  # bytes; error messages omit smaller uses


class PlanError(ValueError):
    """Error of a run that does not fit into memory; the message has the numbers of ``plan``, and settings that help."""

    def __init__(self, message: str, plan: Plan) -> None:
        super().__init__(message)
        self.plan = plan


@dataclass(frozen=True)
class GraphSize:
    """Size of a graph that a foundation model trains on.

    Attributes:
        address: address of its store, without secrets.
        entities, relations, facts: numbers of entities, of relations without inverses, and of training facts.
        bytes: bytes of the graph and its indexes in memory.
        tokens: kinds of tokens that the model reads and the entities have.
        generated_share: share of the steps that learn from generated graphs, of which this is a largest one; None for
            a store. Stores share the other steps in proportion to their facts.
    """

    address: str
    entities: int
    relations: int
    facts: int
    bytes: int
    tokens: tuple[str, ...] = ()
    generated_share: float | None = None


@dataclass(frozen=True)
class Plan:
    """Memory, disk and time of a run.

    Attributes:
        workers: number of workers.
        rows_per_worker: entity rows of the largest shard, with the minimum number of workers for an elastic run; 0 for
            a foundation model, which has no entity table.
        memory: bytes per worker, by use.
        gpu_memory: bytes of GPU memory per worker, by use; empty for a run on CPUs.
        disk: bytes of each worker's files that are mapped into memory, by use; empty if the table lies in memory. The
            kernel holds as many of their pages as memory is left for; they are not in ``memory``.
        available: bytes that a worker may use; None if unknown.
        gpu_available: bytes of GPU memory that a worker may use; None if unknown.
        actors: number of actors that draw negatives.
        actor_memory: bytes per actor, by use.
        disk_available: bytes that each worker may write in ``train.table_folder``; None if unknown.
        steps: steps per epoch.
        seconds: estimated seconds per epoch, by use; None if no machine was measured.
        parameters: number of model parameters over all workers.
        kept: number of frozen parameters among them.
        graphs: sizes of the training graphs of a foundation model.
        reads: kinds of tokens that the model reads if entities have them.
        epochs: number of epochs; None if unknown.
        time_limit: time limit in seconds; None if there is none.
        warnings: sentences on parts of the run that will be missing, such as validation.
        notes: sentences on settings that the machine cannot honour; workers repeat those that apply to them.
    """

    workers: int
    rows_per_worker: int
    memory: dict[str, int]
    gpu_memory: dict[str, int]
    available: int | None
    gpu_available: int | None
    steps: int
    seconds: dict[str, float] | None
    parameters: int
    kept: int = 0
    graphs: tuple[GraphSize, ...] = ()
    reads: tuple[str, ...] = ()
    epochs: int | None = None
    time_limit: float | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    disk: dict[str, int] = field(default_factory=dict)
    disk_available: int | None = None
    actors: int = 0
    actor_memory: dict[str, int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def gpu_bytes(self) -> int:
        return sum(self.gpu_memory.values())

    @property
    def actor_bytes(self) -> int:
        return sum(self.actor_memory.values())

    @property
    def disk_bytes(self) -> int:
        return sum(self.disk.values())

    @property
    def seconds_per_epoch(self) -> float | None:
        return None if self.seconds is None else sum(self.seconds.values())

    @property
    def fits(self) -> bool:
        beside = -(-self.actors * self.actor_bytes // self.workers)  # actors share the machines of the workers
        here = self.available is None or self.total_bytes + beside <= self.available
        there = self.gpu_available is None or self.gpu_bytes <= self.gpu_available
        return here and there and (self.disk_available is None or self.disk_bytes <= self.disk_available)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan in the form that ``distkg plan --json`` prints."""
        totals = {"total_bytes": self.total_bytes, "gpu_bytes": self.gpu_bytes, "disk_bytes": self.disk_bytes}
        totals["actor_bytes"] = self.actor_bytes
        return {**asdict(self), **totals, "seconds_per_epoch": self.seconds_per_epoch, "fits": self.fits}


def refusal(
    config: RunConfig,
    refused: Plan,
    changes: Sequence[tuple[str, Any]],
    again: Callable[[RunConfig], Plan],
) -> str:
    """Return the message of a ``PlanError``: the shortage, and which ``changes`` (dotted key, value) reduce it.

    ``again`` plans a changed configuration.
    """
    beside = -(-refused.actors * refused.actor_bytes // refused.workers)
    host = _shortage("memory", refused.memory | ({"negative actors": beside} if beside else {}), refused.available)
    gpu = _shortage("GPU memory", refused.gpu_memory, refused.gpu_available)
    disk = _shortage("disk in train.table_folder", refused.disk, refused.disk_available)
    knobs = _knobs(config, refused, changes, again)
    return "\n".join([*host, *gpu, *disk, *(["What would help:", *knobs] if knobs else [])])


def with_fewest_workers(config: RunConfig) -> RunConfig:
    """Return the configuration of an elastic run at its minimum number of workers."""
    fewest = config.model_copy(deep=True)
    fewest.train.workers = min(config.cluster.min_workers or config.train.workers, config.train.workers)
    return fewest


def _shortage(kind: str, uses: dict[str, int], available: int | None) -> list[str]:
    total = sum(uses.values())
    if available is None or total <= available:
        return []
    largest = sorted(uses.items(), key=lambda use: -use[1])
    parts = ", ".join(f"{name} {_gib(count)}" for name, count in largest if count >= NOTEWORTHY)
    return [f"this run needs {_gib(total)} of {kind} per worker, and {_gib(available)} are available: {parts}."]


def _knobs(
    config: RunConfig, refused: Plan, changes: Sequence[tuple[str, Any]], again: Callable[[RunConfig], Plan]
) -> list[str]:
    lines = []
    for key, value in changes:
        changed = config.model_copy(deep=True)
        section, name = key.split(".")
        setattr(getattr(changed, section), name, value)
        try:
            plan = again(changed)
        except ConfigError:
            continue
        if _shortest(plan) < 0.98 * _shortest(refused):
            gpu = f" and {_gib(plan.gpu_bytes)} of GPU memory" if plan.gpu_memory else ""
            disk = f" and {_gib(plan.disk_bytes)} of disk" if plan.disk else ""
            needs = f"{_gib(plan.total_bytes)}{gpu}{disk} per worker"
            lines.append(f"  --set {key}={value}: {needs} ({_verdict(key, plan)})")
    if refused.available is not None and refused.total_bytes > refused.available:
        lines.append("  --set cluster.memory_per_worker_gb=G, if workers have more memory than this machine")
    return lines


def _shortest(plan: Plan) -> int:
    """Return the bytes of a refused plan that changed settings have to lower: disk if only disk is short."""
    disk_only = plan.disk_available is not None and replace(plan, disk_available=None).fits
    return plan.disk_bytes if disk_only else plan.total_bytes + plan.gpu_bytes


def _verdict(key: str, changed: Plan) -> str:
    if not changed.fits:
        return "not enough alone"
    return "fits, if each worker has as much memory" if key == "train.workers" else "fits"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
