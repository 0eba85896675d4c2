"""What a run will take, computed before anything starts: bytes per worker and seconds per epoch.

Memory is counted from the shapes that a worker allocates and is meant to be an upper bound. Time is an estimate:
operations and bytes of a step, divided by rates measured on this machine; other load on it is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from distkg.config import ConfigError, RunConfig
from distkg.kernels.similarity import ProductSimilarity
from distkg.objectives import ALL_ENTITIES
from distkg.scoring import Scorer, make_scorer
from distkg.sharding.optimizers import OPTIMIZERS
from distkg.training.machine import Machine

FLOAT = 4
BASE_PROCESS = 700 << 20  # a Ray worker with torch, numba and pyarrow imported, before it allocates anything
# Products per score: one forward, two for the gradients; one more where scores do not fit and are computed again.
PRODUCTS, PRODUCTS_RECOMPUTED = 3, 4
QUERIES_KEPT = 64  # with memory for the scores of this many queries, objectives over all entities keep them
# A distance taken pair by pair costs about six times a multiply-add of a matrix product.
PAIRWISE_COST = 6
# Launches, messages and Python of one step, seconds.
STEP_OVERHEAD = 0.003


class PlanError(ValueError):
    """A run that cannot fit. ``plan`` has the numbers; the message has them too, and the knobs that help."""

    def __init__(self, message: str, plan: Plan) -> None:
        super().__init__(message)
        self.plan = plan


class GraphCounts(Protocol):
    """The counts that a plan needs, as the manifest of a store has them."""

    @property
    def entities(self) -> int: ...
    @property
    def relations(self) -> int: ...
    @property
    def triples(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class Plan:
    """Bytes and seconds of a run.

    Attributes:
        workers: number of workers.
        rows_per_worker: entity rows of the largest shard, with the fewest workers where the run is elastic.
        memory: bytes per worker, by use.
        available: bytes that a worker may use; None where that is not known.
        steps: steps per epoch.
        seconds: estimated seconds per epoch, by use; None where no machine was measured.
        parameters: floats of the model over all workers.
    """

    workers: int
    rows_per_worker: int
    memory: dict[str, int]
    available: int | None
    steps: int
    seconds: dict[str, float] | None
    parameters: int

    @property
    def total_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def seconds_per_epoch(self) -> float | None:
        return None if self.seconds is None else sum(self.seconds.values())

    @property
    def fits(self) -> bool:
        return self.available is None or self.total_bytes <= self.available

    def to_dict(self) -> dict[str, Any]:
        """As ``distkg plan --json`` prints it."""
        totals = {"total_bytes": self.total_bytes, "seconds_per_epoch": self.seconds_per_epoch, "fits": self.fits}
        return {**asdict(self), **totals}


@dataclass(frozen=True)
class _Step:
    """Sizes of one training step on one worker.

    Attributes:
        queries: queries of the step over all workers.
        own: of them, those of this worker.
        rows: distinct entity rows that this worker asks for, at most.
        scores: comparisons of a query with a candidate that this worker computes.
    """

    queries: int
    own: int
    rows: int
    scores: int


def plan(
    config: RunConfig,
    counts: GraphCounts,
    available: int | None,
    machine: Machine | None = None,
    distinct_queries: int | None = None,
) -> Plan:
    """What a run of ``config`` on a graph of ``counts`` takes.

    Args:
        available: bytes per worker, or None for no limit.
        machine: rates of one worker, or None for no estimate of time.
        distinct_queries: distinct (anchor, relation) of the training triples, both directions; default: no two
            queries are equal, which is the most there can be.

    Raises:
        PlanError: the run needs more than ``available``.
        ConfigError, UnknownNameError: the scorer or the optimizer cannot be made.
    """
    result = _plan(config, counts, available, machine, distinct_queries)
    if not result.fits:
        raise PlanError(_refusal(config, counts, result), result)
    return result


def count_distinct_queries(batches: Iterable[np.ndarray], relations: int) -> int:
    """Distinct (anchor, relation) over both directions of int [n, 3] batches of triples."""
    keys = np.empty(0, np.int64)
    for batch in batches:
        head, relation, tail = (column.astype(np.int64) for column in batch.T)
        both = np.concatenate([head * 2 * relations + relation, tail * 2 * relations + relation + relations])
        keys = np.union1d(keys, both)
    return len(keys)


def asks_distinct_queries(config: RunConfig) -> bool:
    """Whether a step takes distinct queries with all their answers, rather than triples."""
    name = config.objective.name
    return name == "k_vs_all" or (name == "one_vs_all" and config.objective.group_answers)


def _plan(
    config: RunConfig, counts: GraphCounts, available: int | None, machine: Machine | None, distinct: int | None
) -> Plan:
    with torch.device("meta"):
        scorer = make_scorer(config.model)
    steps, fewest = _steps(config, counts, distinct), _with_fewest_workers(config)
    return Plan(
        workers=config.train.workers,
        rows_per_worker=_rows(fewest, counts),
        memory=_memory(fewest, counts, scorer),
        available=available,
        steps=steps,
        seconds=None if machine is None else _seconds(config, counts, scorer, steps, machine),
        parameters=counts.entities * scorer.entity_width + _relation_floats(config, counts, scorer),
    )


def _with_fewest_workers(config: RunConfig) -> RunConfig:
    """The configuration of an elastic run that has lost all the workers that it can do without."""
    fewest = config.model_copy(deep=True)
    fewest.train.workers = min(config.cluster.min_workers or config.train.workers, config.train.workers)
    return fewest


def _rows(config: RunConfig, counts: GraphCounts) -> int:
    return -(-counts.entities // config.train.workers)


def _steps(config: RunConfig, counts: GraphCounts, distinct: int | None) -> int:
    items = counts.triples.get("train", 0)
    if asks_distinct_queries(config):
        items = 2 * items if distinct is None else distinct
    return max(1, -(-items // config.train.batch_size))


def _step(config: RunConfig, counts: GraphCounts) -> _Step:
    queries = config.train.batch_size * (1 if asks_distinct_queries(config) else 2)
    own = -(-queries // config.train.workers)
    if config.objective.name in ALL_ENTITIES:
        return _Step(queries, own, min(own, counts.entities), queries * _rows(config, counts))
    negatives = config.negatives
    drawn = -(-own // negatives.chunk_size) * negatives.count if negatives.shared else own * negatives.count
    return _Step(queries, own, min(own + drawn, counts.entities), own * (negatives.count + 1))


def _memory(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> dict[str, int]:
    rows, step = _rows(config, counts), _step(config, counts)
    width, state = scorer.entity_width, OPTIMIZERS[config.optimizer.name].columns
    stored = 2 if config.model.dtype == "bfloat16" else FLOAT
    dense = _relation_floats(config, counts, scorer)
    return {
        "base process": BASE_PROCESS,
        "entity table": rows * width * stored,
        "optimizer state": rows * sum(state(width).values()) * FLOAT,
        # value and gradient; Adam keeps two accumulators, Adagrad one
        "relations and networks": dense * (4 if config.optimizer.name == "adam" else 3) * FLOAT,
        "exchange buffers": _exchange_memory(config, step, width),
        "objective": _objective_memory(config, step, rows, width),
        "evaluation": _evaluation_memory(config, counts, rows),
        "training triples": _triples_memory(config, counts),
        "known facts": _known_memory(config, counts),
    }


def _relation_floats(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    relations = counts.relations * (2 if config.model.inverse == "learned" else 1)
    return relations * scorer.relation_width + sum(parameter.numel() for parameter in scorer.parameters())


def _exchange_memory(config: RunConfig, step: _Step, width: int) -> int:
    # Rows asked for and rows served, their gradients both ways; one more set of rows where the next step's arrive.
    sets = 4 if config.train.workers > 1 else 2
    return (sets + config.train.overlap) * step.rows * width * FLOAT


def _objective_memory(config: RunConfig, step: _Step, rows: int, width: int) -> int:
    vectors = 4 * step.queries * width * FLOAT  # queries, answers and their gradients
    if config.objective.name not in ALL_ENTITIES:
        return vectors + 2 * step.scores * FLOAT
    block = min(config.objective.score_memory_mb << 20, step.scores * FLOAT)
    rounded = rows * width * 2 if config.objective.products == "bfloat16" else 0
    return vectors + block + rows * width * FLOAT + rounded


def _evaluation_memory(config: RunConfig, counts: GraphCounts, rows: int) -> int:
    block = min(config.evaluate.memory_mb << 20, config.evaluate.batch_size * rows * FLOAT)
    queries = 2 * max(counts.triples.get("valid", 0), counts.triples.get("test", 0))
    return block + queries * 64  # per query: ids, two counts, order and the ranks made of them


def _triples_memory(config: RunConfig, counts: GraphCounts) -> int:
    own = -(-counts.triples.get("train", 0) // config.train.workers)
    return own * (3 * 4 + 8)  # int32 triples and the order of the epoch


def _known_memory(config: RunConfig, counts: GraphCounts) -> int:
    evaluated = 2 * (counts.triples.get("valid", 0) + counts.triples.get("test", 0))
    trained = 2 * counts.triples.get("train", 0) if _needs_known(config) else 0
    return (evaluated + trained) * (8 + 8 + 4)  # key, offset and answer


def _needs_known(config: RunConfig) -> bool:
    sampled = config.objective.name not in ALL_ENTITIES
    return config.negatives.filter if sampled else config.objective.name == "k_vs_all" or asks_distinct_queries(config)


def _seconds(config: RunConfig, counts: GraphCounts, scorer: Scorer, steps: int, machine: Machine) -> dict[str, float]:
    rows, step = _rows(config, counts), _step(config, counts)
    width, workers, every = scorer.entity_width, config.train.workers, config.objective.name in ALL_ENTITIES
    cost = 1 if isinstance(scorer.similarity, ProductSimilarity) else PAIRWISE_COST
    products = PRODUCTS_RECOMPUTED if every and not _keeps_scores(config, rows) else PRODUCTS
    away = 2 * step.rows * width * FLOAT * (workers - 1) / workers
    touched = rows if every else step.rows
    per_step = {
        "exchange": 3 * away / machine.bandwidth,  # written, carried and read
        "compute": 2 * step.scores * width * products * cost / machine.flops,
        "optimizer": 5 * touched * width * FLOAT / machine.bandwidth,  # gradient; state and weight read and written
        "overhead": STEP_OVERHEAD,
    }
    return {use: steps * seconds for use, seconds in per_step.items()}


def _keeps_scores(config: RunConfig, rows: int) -> bool:
    return (config.objective.score_memory_mb << 20) >= QUERIES_KEPT * rows * FLOAT


def _refusal(config: RunConfig, counts: GraphCounts, refused: Plan) -> str:
    uses = sorted(refused.memory.items(), key=lambda use: -use[1])
    parts = ", ".join(f"{name} {_gib(count)}" for name, count in uses if count >= 10 << 20)
    lines = [
        f"this run needs {_gib(refused.total_bytes)} per worker and {_gib(refused.available or 0)} are there: {parts}.",
        "What would help:",
        *_knobs(config, counts, refused),
    ]
    return "\n".join(lines)


def _knobs(config: RunConfig, counts: GraphCounts, refused: Plan) -> list[str]:
    lines = []
    for key, value in _changes(config, counts):
        changed = config.model_copy(deep=True)
        section, name = key.split(".")
        setattr(getattr(changed, section), name, value)
        try:
            total = _plan(changed, counts, refused.available, None, None).total_bytes
        except ConfigError:
            continue
        if total < 0.98 * refused.total_bytes:
            lines.append(f"  --set {key}={value}: {_gib(total)} per worker ({_verdict(key, total, refused)})")
    lines.append("  --set cluster.memory_per_worker_gb=G, where workers have more memory than was found here")
    return lines


def _verdict(key: str, total: int, refused: Plan) -> str:
    if total > (refused.available or 0):
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
