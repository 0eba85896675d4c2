"""What a run will take, computed before anything starts: bytes per worker and seconds per epoch.

Memory is an upper bound (``footprint``). Time is an estimate: operations and bytes of a step, divided by rates
measured on this machine; what else the machine does then is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from distkg.config import ConfigError, RunConfig
from distkg.embedding.footprint import (
    FLOAT,
    ON_DEVICE,
    GraphCounts,
    asks_distinct_queries,
    footprint,
    over_all_entities,
    relation_floats,
    shard_rows,
    step_sizes,
)
from distkg.embedding.scorers import Scorer, make_scorer
from distkg.graph.directions import both_directions, query_keys
from distkg.kernels.scores.similarity import ProductSimilarity
from distkg.objectives import QUERY_SAMPLING
from distkg.planning.machine import Machine

# Products per score: one forward, two for the gradients; one more where scores do not fit and are computed again.
PRODUCTS, PRODUCTS_RECOMPUTED = 3, 4
QUERIES_KEPT = 64  # with memory for the scores of this many queries, one_vs_all keeps them
# The exponential of a score and what belongs to it (distance, activation, slope) cost about as many multiply-adds.
TERM_COST = 200
# A distance taken pair by pair costs about six times a multiply-add of a matrix product.
PAIRWISE_COST = 6
# Launches, messages and Python of one step, seconds.
STEP_OVERHEAD = 0.003
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


def plan(
    config: RunConfig,
    counts: GraphCounts,
    available: int | None,
    machine: Machine | None = None,
    *,
    gpu_available: int | None = None,
    distinct_queries: int | None = None,
) -> Plan:
    """What a run of ``config`` on a graph of ``counts`` takes.

    Args:
        available: bytes per worker, or None for no limit.
        machine: rates of one worker, or None for no estimate of time.
        gpu_available: bytes of GPU memory per worker, or None for no limit.
        distinct_queries: distinct (anchor, relation) of the training triples, both directions; default: no two
            queries are equal, which is the most there can be.

    Raises:
        PlanError: the run needs more than is available.
        ConfigError, UnknownNameError: the scorer or the optimizer cannot be made.
    """
    result = _plan(config, counts, available, gpu_available, machine, distinct_queries)
    if not result.fits:
        raise PlanError(_refusal(config, counts, result), result)
    return result


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


def count_distinct_queries(batches: Iterable[np.ndarray], relations: int) -> int:
    """Distinct (anchor, relation) over both directions of int [n, 3] batches of triples."""
    keys = np.empty(0, np.int64)
    for batch in batches:
        anchor, relation, _ = both_directions(*batch.T, num_relations=relations)
        keys = np.union1d(keys, query_keys(anchor, relation, relations))
    return len(keys)


def _plan(
    config: RunConfig,
    counts: GraphCounts,
    available: int | None,
    gpu_available: int | None,
    machine: Machine | None,
    distinct: int | None,
) -> Plan:
    with torch.device("meta"):
        scorer = make_scorer(config.model)
    steps, fewest = _steps(config, counts, distinct), with_fewest_workers(config)
    uses = footprint(fewest, counts, scorer)
    moved = ON_DEVICE if config.cluster.gpus_per_worker > 0 else frozenset()
    return Plan(
        workers=config.train.workers,
        rows_per_worker=shard_rows(fewest, counts),
        memory={use: count for use, count in uses.items() if use not in moved},
        gpu_memory={use: count for use, count in uses.items() if use in moved},
        available=available,
        gpu_available=gpu_available,
        steps=steps,
        seconds=None if machine is None else _seconds(config, counts, scorer, steps, machine),
        parameters=counts.entities * scorer.entity_width + relation_floats(config, counts, scorer),
        epochs=config.train.epochs,
        time_limit=config.train.time_limit_seconds,
    )


def with_fewest_workers(config: RunConfig) -> RunConfig:
    """The configuration of an elastic run that has lost all the workers that it can do without."""
    fewest = config.model_copy(deep=True)
    fewest.train.workers = min(config.cluster.min_workers or config.train.workers, config.train.workers)
    return fewest


def _steps(config: RunConfig, counts: GraphCounts, distinct: int | None) -> int:
    items = counts.triples.get("train", 0)
    if asks_distinct_queries(config):
        items = 2 * items if distinct is None else distinct
    return max(1, -(-items // config.train.batch_size))


def _seconds(config: RunConfig, counts: GraphCounts, scorer: Scorer, steps: int, machine: Machine) -> dict[str, float]:
    rows, sizes = shard_rows(config, counts), step_sizes(config, counts)
    width, workers = scorer.entity_width, config.train.workers
    cost = 1 if isinstance(scorer.similarity, ProductSimilarity) else PAIRWISE_COST
    products = PRODUCTS_RECOMPUTED if _computes_scores_again(config, rows) else PRODUCTS
    per_score = width * products * cost + (TERM_COST if _sums_exponentials(config) else 0)
    away = 2 * sizes.rows * width * FLOAT * (workers - 1) / workers
    touched = rows if over_all_entities(config) else sizes.rows
    per_step = {
        "exchange": 3 * away / machine.bandwidth,  # written, carried and read
        "compute": 2 * sizes.scores * per_score / machine.flops,
        "optimizer": 5 * touched * width * FLOAT / machine.bandwidth,  # gradient; state and weight read and written
        "overhead": STEP_OVERHEAD,
    }
    return {use: steps * seconds for use, seconds in per_step.items()}


def _sums_exponentials(config: RunConfig) -> bool:
    """Whether scores with all entities are summed as exponentials."""
    return config.objective.name in ("one_vs_all", QUERY_SAMPLING)


def _computes_scores_again(config: RunConfig, rows: int) -> bool:
    fitting = (config.objective.score_memory_mb << 20) // (FLOAT * rows)
    return config.objective.name == "one_vs_all" and fitting < QUERIES_KEPT


def _refusal(config: RunConfig, counts: GraphCounts, refused: Plan) -> str:
    def again(changed: RunConfig) -> Plan:
        return _plan(changed, counts, refused.available, refused.gpu_available, None, None)

    return refusal(config, refused, _changes(config, counts), again)


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


def _changes(config: RunConfig, counts: GraphCounts) -> list[tuple[str, Any]]:
    workers = config.train.workers
    more = [("train.workers", workers * factor) for factor in (2, 4, 16) if workers * factor <= counts.entities]
    smaller = [("model.dim", config.model.dim // factor) for factor in (2, 4) if config.model.dim >= 4 * factor]
    return [
        ("optimizer.name", "rowwise_adagrad"),
        ("model.dtype", "bfloat16"),
        *more,
        *smaller,
        ("train.batch_size", max(1, config.train.batch_size // 4)),
        ("objective.score_memory_mb", min(16, config.objective.score_memory_mb)),
        ("evaluate.memory_mb", min(32, config.evaluate.memory_mb)),
    ]


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
