"""What a run will take, computed before anything starts: bytes per worker and seconds per epoch.

Memory is an upper bound. Time is an estimate, by rates measured on this machine; what else the machine does then is not
known. Each family of models counts its own (`distkg.embedding.plan`, `distkg.foundation.plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from distkg.config import ConfigError, RunConfig

NOTEWORTHY = 10 << 20  # bytes; smaller uses are left out of a refusal


class PlanError(ValueError):
    """A run that cannot fit. ``plan`` has the numbers; the message has them too, and the knobs that help."""

    def __init__(self, message: str, plan: Plan) -> None:
        super().__init__(message)
        self.plan = plan


@dataclass(frozen=True)
class GraphSize:
    """A graph that a foundation model learns from.

    Attributes:
        address: of its store, without secrets.
        entities, relations, facts: how many, relations without inverses, facts for training.
        bytes: of what is made of it.
        tokens: those that its entities have, of the kinds that the model reads.
    """

    address: str
    entities: int
    relations: int
    facts: int
    bytes: int
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Bytes and seconds of a run.

    Attributes:
        workers: number of workers.
        rows_per_worker: entity rows of the largest shard, with the fewest workers where the run is elastic; 0 of a
            foundation model, which has none.
        memory: bytes per worker, by use.
        gpu_memory: bytes of GPU memory per worker, by use; empty for a run on CPUs.
        available: bytes that a worker may use; None where that is not known.
        gpu_available: likewise, of GPU memory.
        steps: steps per epoch.
        seconds: estimated seconds per epoch, by use; None where no machine was measured.
        parameters: floats of the model over all workers.
        kept: those of them that do not learn.
        graphs: of a foundation model.
        reads: kinds of tokens that it reads where entities have them.
        epochs: how many the run has; None where that is not known.
        time_limit: seconds after which it stops; None where it does not.
        warnings: sentences on what the run will lack.
        notes: sentences on what the machine does otherwise than configured; workers repeat those that concern them.
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

    @property
    def total_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def gpu_bytes(self) -> int:
        return sum(self.gpu_memory.values())

    @property
    def seconds_per_epoch(self) -> float | None:
        return None if self.seconds is None else sum(self.seconds.values())

    @property
    def fits(self) -> bool:
        here = self.available is None or self.total_bytes <= self.available
        return here and (self.gpu_available is None or self.gpu_bytes <= self.gpu_available)

    def to_dict(self) -> dict[str, Any]:
        """As ``distkg plan --json`` prints it."""
        totals = {"total_bytes": self.total_bytes, "gpu_bytes": self.gpu_bytes}
        return {**asdict(self), **totals, "seconds_per_epoch": self.seconds_per_epoch, "fits": self.fits}


def refusal(
    config: RunConfig,
    refused: Plan,
    changes: Sequence[tuple[str, Any]],
    again: Callable[[RunConfig], Plan],
) -> str:
    """Why a plan is refused, and which of some changes (dotted key, value) would help, as planned ``again``."""
    host = _shortage("memory", refused.memory, refused.available)
    gpu = _shortage("GPU memory", refused.gpu_memory, refused.gpu_available)
    knobs = _knobs(config, refused, changes, again)
    return "\n".join([*host, *gpu, *(["What would help:", *knobs] if knobs else [])])


def with_fewest_workers(config: RunConfig) -> RunConfig:
    """The configuration of an elastic run that has lost all the workers that it can do without."""
    fewest = config.model_copy(deep=True)
    fewest.train.workers = min(config.cluster.min_workers or config.train.workers, config.train.workers)
    return fewest


def _shortage(kind: str, uses: dict[str, int], available: int | None) -> list[str]:
    total = sum(uses.values())
    if available is None or total <= available:
        return []
    largest = sorted(uses.items(), key=lambda use: -use[1])
    parts = ", ".join(f"{name} {_gib(count)}" for name, count in largest if count >= NOTEWORTHY)
    return [f"this run needs {_gib(total)} of {kind} per worker and {_gib(available)} are there: {parts}."]


def _knobs(
    config: RunConfig, refused: Plan, changes: Sequence[tuple[str, Any]], again: Callable[[RunConfig], Plan]
) -> list[str]:
    lines = []
    for key, value in changes:
        changed = config.model_copy(deep=True)
        section, name = key.split(".")
        setattr(getattr(changed, section), name, value)
        try:
            found = again(changed)
        except ConfigError:
            continue
        before, after = refused.total_bytes + refused.gpu_bytes, found.total_bytes + found.gpu_bytes
        if after < 0.98 * before:
            gpu = f" and {_gib(found.gpu_bytes)} of GPU memory" if found.gpu_memory else ""
            lines.append(f"  --set {key}={value}: {_gib(found.total_bytes)}{gpu} per worker ({_verdict(key, found)})")
    if refused.available is not None and refused.total_bytes > refused.available:
        lines.append("  --set cluster.memory_per_worker_gb=G, where workers have more memory than was found here")
    return lines


def _verdict(key: str, changed: Plan) -> str:
    if not changed.fits:
        return "not enough alone"
    return "fits, where each of them has as much memory" if key == "train.workers" else "fits"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
