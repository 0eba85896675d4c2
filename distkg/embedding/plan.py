"""Plan of an embedding run: bytes per worker from the shapes that training allocates, seconds from measured rates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from distkg.config import RunConfig
from distkg.embedding.composed.tokens import Vocabulary, tokens_per_entity
from distkg.embedding.entity_buckets import loads_of_epoch
from distkg.embedding.footprint import (
    ON_DEVICE,
    PAGED,
    QUERY_VECTORS,
    GraphCounts,
    actor_footprint,
    asks_distinct_queries,
    compares_relations_directly,
    composed_floats,
    footprint,
    makes_batches_on_gpu,
    operand_width,
    over_all_entities,
    penalises_products,
    ranks_relations,
    relation_floats,
    shard_rows,
    shares_negatives,
    step_sizes,
    summed_bytes,
    table_on_disk,
)
from distkg.embedding.scorers import Scorer, make_scorer
from distkg.embedding.steps.relation_prediction import BLOCK_FLOATS, relation_scores
from distkg.graph.directions import both_directions, query_keys
from distkg.kernels.given_gradient import with_gradient
from distkg.kernels.scores.similarity import PairwiseSimilarity, ProductSimilarity
from distkg.objectives import QUERY_SAMPLING
from distkg.planning.machine import Machine, best_seconds
from distkg.planning.plan import Plan, PlanError, refusal, with_fewest_workers
from distkg.planning.sizes import FLOAT


@dataclass(frozen=True)
class Limits:
    """Bytes that a worker may use; None for no limit."""

    memory: int | None
    gpu_memory: int | None = None
    disk: int | None = None


# Products per score: one forward, two for the gradients; one more if scores do not fit and are recomputed.
PRODUCTS, PRODUCTS_RECOMPUTED = 3, 4
QUERIES_KEPT = 64  # with memory for the scores of this many queries, one_vs_all keeps them
# Multiply-adds that cost as much as the exponential of a score with its distance, activation and slope.
TERM_COST = 200
# Bytes that losses, weights and gradients of a sampled score move, element by element: 280 to 550 measured on Zen 3
# (DistMult on WN18RR in 256 dimensions, ComplEx on a graph of ten million entities in 64).
SCORE_BYTES = 400
# Multiply-adds of a matrix product that a distance taken pair by pair costs, where it was not measured: six beside a
# processor's matrix unit, about half of that with AVX2.
PAIRWISE_COST = 6
MEASURED_QUERIES, MEASURED_ROWS, MEASURED_RELATIONS = 256, 512, 64
MEASURED_LAYERS = 1 << 26  # weights; a scorer with more is not made for a measurement
# Seconds on a core to make the batch of a query, and to draw a negative and find its row, on Zen 3. The triples
# of a batch are read at random, which costs more the more of them lie outside of the cache.
QUERY_SECONDS, DRAW_SECONDS = 1.3e-7, 2.2e-8
MISS_SECONDS, CACHE_BYTES = 1e-6, 32 << 20
# Bytes that a GPU moves for each id of a batch that it makes: a radix sort reads and writes eight bytes and a place in
# each of eight passes, and a dozen other passes follow. Counted, not measured.
DEVICE_ID_BYTES = 500
# Launches, messages and Python of one step, seconds.
STEP_OVERHEAD = 0.003
# Between nodes, messages go through sockets, which copy them: passes over memory for each byte (on one Zen 3), and
# seconds for a message to one other worker, two of which go to each in a step.
SOCKET_PASSES, MESSAGE_SECONDS = 22, 1e-4


def plan(
    config: RunConfig,
    counts: GraphCounts,
    available: int | None,
    machine: Machine | None = None,
    *,
    gpu_available: int | None = None,
    disk_available: int | None = None,
    distinct_queries: int | None = None,
    first_fact: int = 0,
    times: Times | None = None,
) -> Plan:
    """Return the plan of a run of ``config`` on a graph of size ``counts``.

    Args:
        available: bytes per worker, or None for no limit.
        machine: rates of one worker, or None for no estimate of time.
        gpu_available: bytes of GPU memory per worker, or None for no limit.
        disk_available: bytes of disk per worker for a table on disk, or None for no limit.
        distinct_queries: number of distinct (anchor, relation) of the training triples, both directions; default: the
            upper bound, two for each triple.
        first_fact: first row of the training triples that is learned from.
        times: times of the scorer on a worker; default: a pairwise distance costs a multiple of a matrix product, and
            the transform of a query the products with the scorer's layers.

    Raises:
        PlanError: the run needs more than is available.
        ConfigError, UnknownNameError: the scorer or the optimizer cannot be created.
    """
    limits = Limits(available, gpu_available, disk_available)
    result = _plan(config, counts, limits, machine, distinct_queries, times or Times(), first_fact)
    if not result.fits:
        raise PlanError(_refusal(config, counts, result), result)
    return result


@dataclass(frozen=True)
class Times:
    """Measured times of a scorer on a worker.

    Attributes:
        query: seconds of the transform of a query with its gradients; None if it was not measured.
        pair: seconds of a score with its gradients, for a distance that is taken pair by pair; None for another
            similarity, and where it was not measured.
        relation: seconds of the score of a pair with one relation, with its gradients; None if it was not measured.
    """

    query: float | None = None
    pair: float | None = None
    relation: float | None = None

    def slower(self, factor: float) -> Times:
        """Return the times of a worker that is slower by a factor."""
        times = self.query, self.pair, self.relation
        return Times(*(None if time is None else time * factor for time in times))


def measured_times(config: RunConfig, seconds: float = 0.1) -> Times:
    """Time the scorer of a configuration on this machine, about ``seconds`` for each time."""
    with torch.device("meta"):
        layers = _layers(make_scorer(config.model))
    if layers > MEASURED_LAYERS:  # a plan must not need the memory that it is asked about
        return Times()
    scorer = make_scorer(config.model)
    relation = _seconds_of_relation(config, scorer, seconds) if ranks_relations(config) else None
    return Times(_seconds_of_query(scorer, seconds), _seconds_of_pair(scorer, seconds), relation)


def _layers(scorer: Scorer) -> int:
    """Return the number of weights of a scorer's own layers."""
    return sum(parameter.numel() for parameter in scorer.parameters())


def _seconds_of_query(scorer: Scorer, seconds: float) -> float:
    anchor, relation = (
        torch.rand(MEASURED_QUERIES, width, requires_grad=True)
        for width in (scorer.entity_width, scorer.relation_width)
    )

    def work() -> None:
        query = scorer.query(anchor, relation)
        with_gradient(query, torch.ones_like(query)).backward()

    return best_seconds(work, seconds) / MEASURED_QUERIES


def _seconds_of_pair(scorer: Scorer, seconds: float) -> float | None:
    similarity = scorer.similarity
    if not isinstance(similarity, PairwiseSimilarity):
        return None
    # A query may be wider than a candidate, as in PairRE.
    anchor, relation = torch.rand(1, scorer.entity_width), torch.rand(1, scorer.relation_width)
    with torch.no_grad():
        query = torch.rand(MEASURED_QUERIES, scorer.query(anchor, relation).shape[1])
        rows = torch.rand(MEASURED_ROWS, scorer.candidates(anchor).shape[1])

    def work() -> None:
        scores = similarity.scores(query, rows)
        similarity.gradients(scores, scores, query, rows)

    return best_seconds(work, seconds) / (MEASURED_QUERIES * MEASURED_ROWS)


def _seconds_of_relation(config: RunConfig, scorer: Scorer, seconds: float) -> float:
    with torch.no_grad():
        operands = scorer.operand(torch.rand(MEASURED_RELATIONS, scorer.relation_width)).requires_grad_()
    pairs = max(1, min(MEASURED_QUERIES, BLOCK_FLOATS // (MEASURED_RELATIONS * scorer.entity_width)))
    anchor, answer = (torch.rand(pairs, scorer.entity_width, requires_grad=True) for _ in range(2))
    direct = compares_relations_directly(config, scorer)

    def work() -> None:
        queries = None if direct else scorer.cross_queries(anchor, operands).flatten(0, 1)
        scores = relation_scores(scorer, scorer.similarity, anchor, answer, operands, queries)
        torch.log_softmax(scores, 1)[:, 0].sum().backward()

    return best_seconds(work, seconds) / (pairs * MEASURED_RELATIONS)


def bytes_per_step(config: RunConfig, counts: GraphCounts) -> int:
    """Return the bytes that a worker sends and receives in a step: rows, their gradients, and those of relations."""
    with torch.device("meta"):
        scorer = make_scorer(config.model)
    workers, rows = config.train.workers, step_sizes(config, counts).rows
    away = (workers - 1) / workers
    # It receives its rows, sends as many of the others', and the same with gradients; a ring sums those of relations.
    entities = 4 * rows * scorer.entity_width * FLOAT
    return int(away * (entities + 4 * summed_bytes(config, counts, scorer)))


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
    limits: Limits,
    machine: Machine | None,
    distinct: int | None,
    times: Times,
    first_fact: int = 0,
) -> Plan:
    with torch.device("meta"):
        scorer = make_scorer(config.model)
    steps, fewest = _steps(config, counts, distinct, first_fact), with_fewest_workers(config)
    uses = footprint(fewest, counts, scorer)
    moved = ON_DEVICE if config.cluster.gpus_per_worker > 0 else frozenset()
    paged = PAGED if table_on_disk(config) else frozenset()
    planned = Plan(
        workers=config.train.workers,
        rows_per_worker=shard_rows(fewest, counts),
        memory={use: count for use, count in uses.items() if use not in moved | paged},
        gpu_memory={use: count for use, count in uses.items() if use in moved},
        available=limits.memory,
        gpu_available=limits.gpu_memory,
        steps=steps,
        seconds=None if machine is None else _seconds(config, counts, scorer, steps, machine, times),
        parameters=_stored_floats(config, counts, scorer) + relation_floats(config, counts, scorer),
        epochs=config.train.epochs,
        time_limit=config.train.time_limit_seconds,
        disk={use: count for use, count in uses.items() if use in paged},
        disk_available=limits.disk,
        actors=config.negatives.pool.actors,
        actor_memory=actor_footprint(fewest, counts, scorer),
    )
    return replace(planned, warnings=_paging(planned, config.train.resident_share))


def _stored_floats(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    """Count the floats of stored entity rows."""
    return counts.entities * scorer.entity_width if config.model.entities == "table" else 0


def _paging(planned: Plan, resident_share: float) -> tuple[str, ...]:
    """Return a warning if the pages of a table on disk exceed the memory that is left for them."""
    disk, available = planned.disk_bytes, planned.available
    if not disk or available is None or planned.total_bytes + disk <= available:
        return ()
    size = f"the entity table and its optimizer state take {disk / 2**30:.2f} GiB of disk per worker"
    if resident_share < 1:
        moved = disk * loads_of_epoch(resident_share) / 2**30
        return (f"{size}: an epoch reads {moved:.1f} GiB and writes as much, which the estimate of time leaves out",)
    left = max(0, available - planned.total_bytes)
    share = math.floor(100 * left / disk) / 100
    remedy = f". Set train.resident_share: {share:g}, and most steps will find their rows in memory" if share else ""
    return (
        f"{size}, and {left / 2**30:.2f} GiB of memory are left for their pages: steps will wait for the disk, which "
        f"the estimate of time leaves out{remedy}",
    )


def _steps(config: RunConfig, counts: GraphCounts, distinct: int | None, first_fact: int) -> int:
    items = counts.triples.get("train", 0) - first_fact
    if asks_distinct_queries(config):
        items = 2 * items if distinct is None else distinct
    return max(1, -(-items // config.train.batch_size))


def _seconds(
    config: RunConfig,
    counts: GraphCounts,
    scorer: Scorer,
    steps: int,
    machine: Machine,
    times: Times,
) -> dict[str, float]:
    rows, sizes = shard_rows(config, counts), step_sizes(config, counts)
    width, workers = scorer.entity_width, config.train.workers
    cost = 1 if isinstance(scorer.similarity, ProductSimilarity) else PAIRWISE_COST
    products = PRODUCTS_RECOMPUTED if _computes_scores_again(config, rows) else PRODUCTS
    terms = 2 * (TERM_COST if _sums_exponentials(config) else 0) / machine.flops
    score = 2 * width * products * cost / machine.flops if times.pair is None else times.pair * products / PRODUCTS
    pairs = 2 * counts.triples.get("train", 0) / steps / workers
    # hR of every query and tRᵀ of every answer.
    transforms = sizes.own + (sizes.own + pairs if penalises_products(config) else 0)
    relation = _relation_seconds(config, scorer, machine) if times.relation is None else times.relation
    passes = 0 if over_all_entities(config) else sizes.scores * _score_bytes(config, width)
    touched = rows if over_all_entities(config) else sizes.rows
    # Not measured, a transform takes each weight of the scorer's layers once, and twice for its gradients.
    transform = 2 * 3 * _layers(scorer) / machine.flops if times.query is None else times.query
    per_step = {
        "data": _data_seconds(config, counts, machine),
        "exchange": _exchange(sizes.rows * width * FLOAT, workers, machine),
        "compute": transforms * transform
        + sizes.scores * (score + terms)
        + passes / machine.bandwidth
        + (pairs * counts.relations * relation if ranks_relations(config) else 0)
        + _composing(config, counts, scorer, touched, machine),
        "optimizer": 5 * touched * width * FLOAT / machine.bandwidth,  # gradient; state and weight read and written
        "relations": _replicated(
            relation_floats(config, counts, scorer) * FLOAT, summed_bytes(config, counts, scorer), workers, machine
        ),
        "overhead": STEP_OVERHEAD,
    }
    return {use: steps * seconds for use, seconds in per_step.items()}


def _composing(config: RunConfig, counts: GraphCounts, scorer: Scorer, rows: int, machine: Machine) -> float:
    """Return the seconds in which ``rows`` are composed, twice, and the gradients go back; 0 if rows are stored."""
    if config.model.entities == "table":
        return 0.0
    settings, width = config.model.nodepiece, scorer.entity_width
    tokens = 3 * rows * tokens_per_entity(settings) * width * FLOAT / machine.bandwidth
    network = composed_floats(config, counts, scorer) if settings.encoder == "mlp" else 0
    weights = max(0, network - Vocabulary.of(settings, counts.entities, counts.relations).size * width)
    return tokens + 4 * 2 * rows * weights / machine.flops


def _relation_seconds(config: RunConfig, scorer: Scorer, machine: Machine) -> float:
    """Return the seconds of the score of a pair with one relation, with its gradients, where it was not measured."""
    if compares_relations_directly(config, scorer):
        return 2 * 3 * operand_width(scorer) / machine.flops
    return 2 * 3 * QUERY_VECTORS * scorer.entity_width / machine.flops


def _data_seconds(config: RunConfig, counts: GraphCounts, machine: Machine) -> float:
    """Return the seconds in which the batch of a step is made."""
    sizes = step_sizes(config, counts)
    if makes_batches_on_gpu(config):
        return 2 * (sizes.own + sizes.drawn) * DEVICE_ID_BYTES / machine.bandwidth
    return sizes.own * _query_seconds(config, counts) + sizes.drawn * DRAW_SECONDS


def _query_seconds(config: RunConfig, counts: GraphCounts) -> float:
    """Return the seconds in which the batch of a query is made."""
    held = counts.triples.get("train", 0) / config.train.workers * 3 * FLOAT
    outside = max(0.0, 1 - CACHE_BYTES / held) if held else 0.0
    return QUERY_SECONDS + outside * MISS_SECONDS


def _score_bytes(config: RunConfig, width: int) -> int:
    """Return the bytes that a sampled score moves; without shared negatives, its row is read for it alone."""
    return SCORE_BYTES + (0 if shares_negatives(config) else width * FLOAT)


def _exchange(rows: int, workers: int, machine: Machine) -> float:
    """Return the seconds in which a worker exchanges ``rows`` bytes of entity rows, and as many of their gradients."""
    away = 2 * rows * (workers - 1) / workers
    if machine.network is None:
        return 3 * away / machine.bandwidth  # written, carried and read, through shared memory
    through_network = 2 * rows * (machine.nodes - 1) / machine.nodes / machine.network
    messages = 2 * (workers - 1) * MESSAGE_SECONDS
    return SOCKET_PASSES * away / machine.bandwidth + through_network + messages


def _replicated(size: int, summed: int, workers: int, machine: Machine) -> float:
    """Return the seconds of the update of ``size`` bytes of replicated parameters, of whose gradients ``summed`` bytes
    are summed over the workers first."""
    update = 5 * size / machine.bandwidth
    if workers == 1:
        return update
    sent = 2 * summed * (workers - 1) / workers  # by each worker of a ring, which receives as much
    if machine.network is None:
        return update + 3 * sent / machine.bandwidth
    # Ranks of a ring are neighbours on their nodes: one stream leaves each node.
    per_node = machine.network * workers / machine.nodes
    return update + SOCKET_PASSES * sent / machine.bandwidth + sent / per_node


def _sums_exponentials(config: RunConfig) -> bool:
    """Return whether the objective sums exponentials of the scores of all entities."""
    return config.objective.name in ("one_vs_all", QUERY_SAMPLING)


def _computes_scores_again(config: RunConfig, rows: int) -> bool:
    fitting = (config.objective.score_memory_mb << 20) // (FLOAT * rows)
    return config.objective.name == "one_vs_all" and fitting < QUERIES_KEPT


def _refusal(config: RunConfig, counts: GraphCounts, refused: Plan) -> str:
    def again(changed: RunConfig) -> Plan:
        limits = Limits(refused.available, refused.gpu_available, refused.disk_available)
        return _plan(changed, counts, limits, None, None, Times())

    return refusal(config, refused, _changes(config, counts), again)


def _changes(config: RunConfig, counts: GraphCounts) -> list[tuple[str, Any]]:
    workers, batch = config.train.workers, config.train.batch_size
    most, stored = min(counts.entities, batch), config.model.entities == "table"
    more = [("train.workers", workers * factor) for factor in (2, 4, 16) if workers * factor <= most]
    samples = not over_all_entities(config) and config.cluster.gpus_per_worker == 0
    on_disk = [("train.table_storage", "disk")] if stored and samples and not table_on_disk(config) else []
    smaller = [("model.dim", config.model.dim // factor) for factor in (2, 4) if config.model.dim >= 4 * factor]
    return [
        *([("optimizer.name", "rowwise_adagrad"), ("model.dtype", "bfloat16")] if stored else []),
        *on_disk,
        *more,
        *smaller,
        ("train.batch_size", max(workers, batch // 4)),
        ("objective.score_memory_mb", min(16, config.objective.score_memory_mb)),
        ("evaluate.memory_mb", min(32, config.evaluate.memory_mb)),
    ]
