"""Plan of an embedding run: bytes per worker from the shapes that training allocates, seconds from measured rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from distkg.config import RunConfig
from distkg.embedding.footprint import (
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
from distkg.planning.plan import Plan, PlanError, refusal, with_fewest_workers
from distkg.planning.sizes import FLOAT

# Products per score: one forward, two for the gradients; one more if scores do not fit and are recomputed.
PRODUCTS, PRODUCTS_RECOMPUTED = 3, 4
QUERIES_KEPT = 64  # with memory for the scores of this many queries, one_vs_all keeps them
# Multiply-adds that cost as much as the exponential of a score with its distance, activation and slope.
TERM_COST = 200
# A distance taken pair by pair costs about six times a multiply-add of a matrix product.
PAIRWISE_COST = 6
# Launches, messages and Python of one step, seconds.
STEP_OVERHEAD = 0.003


def plan(
    config: RunConfig,
    counts: GraphCounts,
    available: int | None,
    machine: Machine | None = None,
    *,
    gpu_available: int | None = None,
    distinct_queries: int | None = None,
) -> Plan:
    """Return the plan of a run of ``config`` on a graph of size ``counts``.

    Args:
        available: bytes per worker, or None for no limit.
        machine: rates of one worker, or None for no estimate of time.
        gpu_available: bytes of GPU memory per worker, or None for no limit.
        distinct_queries: number of distinct (anchor, relation) of the training triples, both directions; default: the
            upper bound, two for each triple.

    Raises:
        PlanError: the run needs more than is available.
        ConfigError, UnknownNameError: the scorer or the optimizer cannot be created.
    """
    result = _plan(config, counts, available, gpu_available, machine, distinct_queries)
    if not result.fits:
        raise PlanError(_refusal(config, counts, result), result)
    return result


def count_distinct_queries(batches: Iterable[np.ndarray], relations: int) -> int:
    """Return the number of distinct (anchor, relation) over both directions of int [n, 3] batches of triples."""
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
    """Return whether the objective sums exponentials of the scores of all entities."""
    return config.objective.name in ("one_vs_all", QUERY_SAMPLING)


def _computes_scores_again(config: RunConfig, rows: int) -> bool:
    fitting = (config.objective.score_memory_mb << 20) // (FLOAT * rows)
    return config.objective.name == "one_vs_all" and fitting < QUERIES_KEPT


def _refusal(config: RunConfig, counts: GraphCounts, refused: Plan) -> str:
    def again(changed: RunConfig) -> Plan:
        return _plan(changed, counts, refused.available, refused.gpu_available, None, None)

    return refusal(config, refused, _changes(config, counts), again)


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
