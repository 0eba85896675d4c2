"""Memory estimate: upper bound of a worker's peak bytes, from the shapes that training allocates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from distkg.config import RunConfig
from distkg.data.store.known_answers import SORTED_QUERY_BYTES
from distkg.embedding.batches import MARKED_SHARE, TOGETHER
from distkg.embedding.composed.encoder import TokenEncoder
from distkg.embedding.composed.table import COMPOSED_ROWS
from distkg.embedding.composed.tokens import Vocabulary, tokens_per_entity
from distkg.embedding.entity_buckets import PARTITIONS, SPARE, partitions_in_use
from distkg.embedding.loop import WINDOW
from distkg.embedding.scorers import Scorer
from distkg.embedding.steps.captured import MOST_SHAPES
from distkg.embedding.steps.relation_prediction import BLOCK_FLOATS, has_relation_queries
from distkg.embedding.steps.step import DUAL_FLOATS
from distkg.evaluation.score_blocks import CACHED_ROWS
from distkg.kernels.given_gradient import with_gradient
from distkg.negatives import SOURCES, RunSizes, depends_on_query, draws_on_tensors, generated_bytes, source_memory
from distkg.negatives.kmas.relation_similarity import table_memory
from distkg.negatives.prefetch.prefetched_source import hosted_parts
from distkg.objectives import ALL_ENTITIES, NON_NEGATIVE, PENALISES_PRODUCTS, QUERY_SAMPLING
from distkg.planning.peak import peak_bytes
from distkg.planning.sizes import BASE_PROCESS, FLOAT, INDEX, known_facts
from distkg.sharding.optimizers import OPTIMIZERS
from distkg.sharding.replicated_parameters import SUMMED_WHOLE

ON_DEVICE = frozenset(
    {
        "entity table",
        "optimizer state",
        "average of weights",
        "relations and networks",
        "exchange buffers",
        "objective",
        "relation prediction",
        "evaluation",
        "batches on the GPU",
    }
)
"""Parts of the footprint that are in GPU memory, if the worker has a GPU."""

LATER = frozenset({"checkpoint copy", "exchange buffers", "objective", "relation prediction", "evaluation", "batches"})
"""Parts of the footprint that are not allocated before the first step."""

PAGED = frozenset({"entity table", "optimizer state", "average of weights"})
"""Parts of the footprint that a table on disk keeps in mapped files."""
PAGE = 4096
# Resident memory per byte of the tensors of a step, which fragment the heap, on huge pages; measured: 1.1 to 1.8.
HEAP = 1.8
LAYERS = 2  # memory of a transform with layers per byte of its tensors: oneDNN has buffers of its own
ANSWER_VECTORS = 4  # of a query beside its transform: the answer and gradients
PENALTY_VECTORS, PRODUCT_VECTORS = 4, 8  # more with a regularizer, and more with one of products
SCORE_FLOATS = 5.5  # of a sampled score: itself, its loss and weight, and gradients
PUBLISHED_VERSIONS = 2
QUERY_BYTES, REPLY_BYTES = 2 * 24, 5  # of a query in a request and beside it, and of a negative in a reply
DRAW_BYTES = 96  # of a negative that an actor draws: random numbers, steps of a walk, its id and mask, and the reply
SORT_BYTES = 20  # per item of a worker, for sorting an epoch by buckets: keys, their order, and the sorted items
LEFT_BYTES = 56  # per item of a worker, for finding what was left of an epoch; measured: 33 to 53
ORDERS = 3  # of epochs that are kept: a request for negatives may be ahead by one
SORTED_IDS = 8  # times the ids of a batch while they are sorted: themselves, their places, and the sort's own buffers
MASKED_IDS = 4  # times the negatives of a batch while known facts are masked: keys, places, and what is found there
COMPOSED_TOKENS = 14  # floats per token of rows that are composed together: ids, weights, and their order in torch
SEARCHED_BYTES = 64  # per fact and direction, for the tokens of entities: keys, their order, counts, and neighbours
QUERY_VECTORS = 12  # of a transform that cannot be counted
OPERANDS, PAIR_VECTORS, SHARES = 5, 6, 4  # of relation prediction, with gradients: of a relation, a pair, and a score
WIDEST_COMPUTED = 8192  # floats of a row of which a plan computes 128, four megabytes for each tensor

Count = TypeVar("Count", int, float)


class GraphCounts(Protocol):
    """Counts of a graph that a plan needs, as in the manifest of a store."""

    @property
    def entities(self) -> int: ...
    @property
    def relations(self) -> int: ...
    @property
    def triples(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class StepSizes:
    """Sizes of one training step on one worker.

    Attributes:
        queries: queries of the step over all workers.
        own: queries of this worker.
        drawn: negatives that this worker draws.
        rows: upper bound of the distinct entity rows that this worker fetches.
        scores: number of scores that this worker computes.
    """

    queries: int
    own: int
    drawn: int
    rows: int
    scores: int


def over_all_entities(config: RunConfig) -> bool:
    """Return True if the objective updates every entity in every step, instead of answers and negatives only."""
    return config.objective.name in (*ALL_ENTITIES, QUERY_SAMPLING, NON_NEGATIVE)


def asks_distinct_queries(config: RunConfig) -> bool:
    """Return True if a step consists of distinct queries with all their answers, instead of triples."""
    grouped = config.objective.group_answers or config.objective.name == "k_vs_all"
    return config.objective.name in ALL_ENTITIES and grouped


def shares_negatives(config: RunConfig) -> bool:
    """Return True if the queries of a chunk share their negatives."""
    negatives = config.negatives
    return negatives.shared and not depends_on_query(negatives.source, negatives.options)


def table_on_disk(config: RunConfig) -> bool:
    """Return True if the entity table and its optimizer state are mapped from files."""
    return config.train.table_storage == "disk"


def shard_rows(config: RunConfig, counts: GraphCounts) -> int:
    """Return the number of entity rows of the largest shard."""
    return -(-counts.entities // config.train.workers)


def step_sizes(config: RunConfig, counts: GraphCounts) -> StepSizes:
    """Compute the sizes of a training step of a configuration."""
    queries = config.train.batch_size * (1 if asks_distinct_queries(config) else 2)
    own = -(-queries // config.train.workers)
    if over_all_entities(config):
        with_answers = config.objective.name not in ALL_ENTITIES
        shares = {QUERY_SAMPLING: config.objective.query_share, NON_NEGATIVE: 0.0}
        compared = math.ceil(queries * shares.get(config.objective.name, 1.0)) * shard_rows(config, counts)
        rows = min(2 * own if with_answers else own, counts.entities)
        return StepSizes(queries, own, 0, rows, compared + own if with_answers else compared)
    negatives = config.negatives
    drawn = negatives.count * (-(-own // negatives.chunk_size) if shares_negatives(config) else own)
    return StepSizes(queries, own, drawn, min(own + drawn, counts.entities), own * (negatives.count + 1))


def relation_floats(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    """Count the replicated floats: relation vectors and the scorer's own layers."""
    own = _relation_rows(config, counts) * scorer.relation_width + _network_floats(scorer)
    return own + composed_floats(config, counts, scorer)


def composed_floats(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    """Count the replicated floats that entity rows are composed of; 0 if rows are stored."""
    if config.model.entities == "table":
        return 0
    vocabulary = Vocabulary.of(config.model.nodepiece, counts.entities, counts.relations)
    with torch.device("meta"):
        encoder = TokenEncoder(config.model.nodepiece, vocabulary, scorer.entity_width)
    return sum(parameter.numel() for parameter in encoder.parameters())


def _relation_rows(config: RunConfig, counts: GraphCounts) -> int:
    return counts.relations * (2 if config.model.inverse == "learned" else 1)


def _network_floats(scorer: Scorer) -> int:
    return sum(parameter.numel() for parameter in scorer.parameters())


def summed_bytes(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    """Return the bytes of replicated parameters whose gradients a step sums over workers, at most.

    Of a large table of relations, these are the rows that the queries of the step use, and a byte for every row, which
    tells whether it is used.
    """
    rows, row = _relation_rows(config, counts), scorer.relation_width * FLOAT
    networks = (_network_floats(scorer) + composed_floats(config, counts, scorer)) * FLOAT
    if rows * row <= SUMMED_WHOLE or config.objective.relation_prediction:
        return networks + rows * row
    return networks + min(rows, step_sizes(config, counts).queries) * row + rows


def footprint(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> dict[str, int]:
    """Estimate the bytes of the largest worker, by use."""
    composed = config.model.entities == "nodepiece"
    stored, state = (0, 0) if composed else _stored_rows(config, counts, scorer)
    dense = relation_floats(config, counts, scorer) * FLOAT
    accumulators = 2 if config.optimizer.name == "adam" else 1
    on_disk, averages = table_on_disk(config), config.train.average != "none"
    averaged = stored if averages else 0
    objective = (_all_entities if over_all_entities(config) else _sampled)(config, counts, scorer)
    # Vectors are gathered between steps, and steps reuse their memory.
    requests = message_bytes(config, counts, scorer) + max(0, _gathered(config, counts, scorer) - objective)
    uses = {
        "base process": BASE_PROCESS,
        "entity table": _token_bytes(config, counts) if composed else stored,
        "optimizer state": state,
        **({"average of weights": averaged} if averages else {}),
        "relations and networks": dense * (2 + accumulators + averages),  # with value and gradient
        # While a checkpoint is written; a table on disk is written from its file.
        "checkpoint copy": (0 if on_disk else stored + state + averaged) + dense * (1 + accumulators + averages),
        **(_pages(config, counts, stored, state) if on_disk else {}),
        "exchange buffers": _exchange(config, counts, scorer),
        "objective": objective + (_composition(config, counts, scorer) if composed else 0),
        **({"relation prediction": _relation_prediction(config, counts, scorer)} if ranks_relations(config) else {}),
        "evaluation": _evaluation(config, counts, scorer),
        "training triples": _training_triples(config, counts),
        "batches": _batches(config, counts),
        **({"batches on the GPU": _batches_on_device(config, counts, scorer)} if makes_batches_on_gpu(config) else {}),
        "known facts": _known_facts(config, counts),
        "negative source": _negative_source(config, counts, scorer),
        "vectors for actors": _published(config, counts, scorer),
        "requests to actors": requests,
    }
    here = LATER - ON_DEVICE if config.cluster.gpus_per_worker > 0 else LATER
    later = sum(uses.get(use, 0) for use in here)
    before = {"continued epoch": _continued(config, counts) - later}
    if composed:
        before["search for anchors"] = _anchor_search(config, counts) - later
    return uses | {use: count for use, count in before.items() if count > 0}


def _stored_rows(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> tuple[int, int]:
    """Return the bytes of the largest shard of the entity table, and of its optimizer state."""
    rows, columns = shard_rows(config, counts), OPTIMIZERS[config.optimizer.name].columns(scorer.entity_width)
    stored = rows * scorer.entity_width * (2 if config.model.dtype == "bfloat16" else FLOAT)
    return stored, rows * sum(columns.values()) * FLOAT


def _token_bytes(config: RunConfig, counts: GraphCounts) -> int:
    return shard_rows(config, counts) * tokens_per_entity(config.model.nodepiece) * 4


def _composition(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    """Return the bytes of rows that are composed together, with their gradients: of a sum two vectors each, of a
    network five more that are twice as wide; and its tokens, which are sorted for the gradients."""
    rows = min(COMPOSED_ROWS, counts.entities)
    vectors = (12 if config.model.nodepiece.encoder == "mlp" else 2) * scorer.entity_width
    tokens = COMPOSED_TOKENS * tokens_per_entity(config.model.nodepiece)
    every = shard_rows(config, counts) * scorer.entity_width if over_all_entities(config) else 0
    return int(HEAP * rows * (vectors + tokens) + every) * FLOAT


def _anchor_search(config: RunConfig, counts: GraphCounts) -> int:
    """Return the bytes for making tokens: both directions of all facts sorted, and the nearest anchors of all
    entities."""
    facts, settings = counts.triples.get("train", 0), config.model.nodepiece
    return 2 * facts * SEARCHED_BYTES + counts.entities * (settings.nearest * 5 + 3 * INDEX)


def _continued(config: RunConfig, counts: GraphCounts) -> int:
    """Return the bytes for finding what other workers left of an epoch."""
    items = counts.triples.get("train", 0) * (2 if over_all_entities(config) else 1)
    return -(-items // config.train.workers) * (LEFT_BYTES + (SORT_BYTES if config.train.resident_share < 1 else 0))


def _exchange(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    # Rows requested and served, their gradients in both directions and summed; with overlap, the next step's rows too.
    several = config.train.workers > 1
    sets = (5 if several else 2) + config.train.overlap
    summed = summed_bytes(config, counts, scorer) if several else 0  # a copy without the rows that a step does not use
    return sets * step_sizes(config, counts).rows * scorer.entity_width * FLOAT + summed


def _pages(config: RunConfig, counts: GraphCounts, *tensors: int) -> dict[str, int]:
    """Return the bytes of the pages of the rows of two steps, the current one and the next, which is read ahead; and
    of the partitions in memory, if an epoch is sorted by them."""
    rows = shard_rows(config, counts)
    touched = min(2 * step_sizes(config, counts).rows, rows)
    of_steps = sum(min(touched * (tensor // rows // PAGE + 1) * PAGE, tensor) for tensor in tensors)
    share = config.train.resident_share
    if share == 1:
        return {"pages of a step": of_steps}
    resident = sum(tensors) * (partitions_in_use(share) + SPARE) // PARTITIONS
    return {"resident partitions": resident, "pages of a step": min(of_steps, max(0, sum(tensors) - resident))}


def _sampled(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    sizes = step_sizes(config, counts)
    # Shared negatives and their gradients; unshared ones are read in place, and have the gradient of all rows, and each
    # further thread has that of all queries.
    drawn = 2 * sizes.drawn if shares_negatives(config) else sizes.rows + sizes.own * (config.cluster.threads - 1)
    answers = ANSWER_VECTORS + (PENALTY_VECTORS if config.regularizer.name != "none" else 0)
    answers += PRODUCT_VECTORS if penalises_products(config) else 0
    vectors = (answers * sizes.own + drawn) * _widest(scorer)
    transform = query_floats(scorer) * (LAYERS if any(True for _ in scorer.parameters()) else 1)
    # With one GPU, steps are captured in graphs, each of which keeps its memory.
    copies = 1 + (MOST_SHAPES if config.cluster.gpus_per_worker > 0 and config.train.workers == 1 else 0)
    return int(copies * HEAP * FLOAT * (sizes.own * transform + vectors + SCORE_FLOATS * sizes.scores))


def query_floats(scorer: Scorer) -> float:
    """Return the floats that the transform of one query takes with its gradients, anchor and relation included.

    Those of a scorer with parameters, which must be on the device ``meta``, and of wide rows are counted there, where
    nothing is computed. The others compute, as the first operation on ``meta`` imports torch's compiler, which takes a
    second.
    """
    wide = max(scorer.entity_width, scorer.relation_width) > WIDEST_COMPUTED
    device = "meta" if wide else _device(scorer)

    def transform(queries: int) -> None:
        anchor, relation = _rows_of_queries(scorer, queries, device)  # a step holds both until its end
        query = scorer.query(anchor, relation)
        with_gradient(query, torch.empty_like(query)).backward()

    def floats() -> float:
        few, many = 64, 128
        transform(few)  # gradients of layers are allocated once
        return (peak_bytes(lambda: transform(many)) - peak_bytes(lambda: transform(few))) / ((many - few) * FLOAT)

    return _counted(floats, float(QUERY_VECTORS * max(scorer.entity_width, scorer.relation_width)))


def _device(scorer: Scorer) -> str:
    """Return the device of a scorer's parameters in a plan; that of a scorer without is the CPU."""
    return "meta" if any(True for _ in scorer.parameters()) else "cpu"


def _rows_of_queries(scorer: Scorer, queries: int, device: str) -> tuple[Tensor, Tensor]:
    """Return anchor and relation rows of queries, with gradients."""
    anchor, relation = (
        torch.zeros(queries, width, device=device, requires_grad=True)
        for width in (scorer.entity_width, scorer.relation_width)
    )
    return anchor, relation


def _counted(count: Callable[[], Count], otherwise: Count) -> Count:
    """Return the result of ``count``; ``otherwise`` if a plug-in's transform reads values, which ``meta`` lacks."""
    try:
        return count()
    except (NotImplementedError, RuntimeError):
        return otherwise


def _all_entities(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    sizes = step_sizes(config, counts)
    shard = shard_rows(config, counts) * scorer.entity_width
    # Queries of this worker with their gradients, and those of all workers.
    vectors = sizes.own * query_floats(scorer) + 4 * sizes.queries * scorer.entity_width
    if penalises_products(config):  # those of queries, then those of answers, by blocks, with all relations
        own = sizes.own * (query_floats(scorer) + PRODUCT_VECTORS * scorer.entity_width)
        relations = 2 * counts.relations * scorer.relation_width
        vectors += own + 2 * relations + PRODUCT_VECTORS * max(DUAL_FLOATS, scorer.relation_width)
    block = 3 * min(config.objective.score_memory_mb << 20, sizes.scores * FLOAT) // 2  # and gradients of a part of it
    gradients = shard * (2 if config.train.overlap else 1)
    if type(scorer).candidates is not Scorer.candidates:  # the candidate vectors of the shard, and their gradients
        gradients += 2 * shard_rows(config, counts) * _widest(scorer)
    rounding = 14 * shard if config.model.dtype == "bfloat16" else 0  # the shard in float32, updated and rounded
    return int(HEAP * vectors + gradients) * FLOAT + block + rounding


def penalises_products(config: RunConfig) -> bool:
    """Return True if the regularizer penalises products with relations: of a step, two more transforms of a query."""
    return config.regularizer.name in PENALISES_PRODUCTS


def ranks_relations(config: RunConfig) -> bool:
    """Return True if steps predict the relations of their queries too."""
    return config.objective.relation_prediction > 0


def compares_relations_directly(config: RunConfig, scorer: Scorer) -> bool:
    """Return True if relation prediction needs no query vector for each relation."""
    device = next((each.device for each in scorer.parameters()), torch.device("cpu"))
    return config.objective.activation == "none" and has_relation_queries(scorer, device)


def operand_width(scorer: Scorer) -> int:
    """Return the floats of a relation's operand."""
    device = "meta" if any(True for _ in scorer.parameters()) else "cpu"
    relation = torch.zeros(1, scorer.relation_width, device=device)
    return _counted(lambda: scorer.operand(relation).shape[1], scorer.relation_width)


def _relation_prediction(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    sizes, relations, width = step_sizes(config, counts), counts.relations, scorer.entity_width
    operand = operand_width(scorer)
    gathered = (2 * sizes.queries + sizes.own) * width if over_all_entities(config) else 0
    if compares_relations_directly(config, scorer):
        pairs = max(1, BLOCK_FLOATS // (relations + operand))
        block = pairs * (SHARES * relations + PAIR_VECTORS * operand)
    else:
        pairs = max(1, BLOCK_FLOATS // (relations * width))
        one_by_one = type(scorer).cross_queries is Scorer.cross_queries
        transform = max(query_floats(scorer) if one_by_one else 0, QUERY_VECTORS * width)
        block = int(pairs * relations * (transform + SHARES))
    return int(HEAP * (OPERANDS * relations * operand + block + PAIR_VECTORS * pairs * width + gathered)) * FLOAT


def _evaluation(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    settings, triples = config.evaluate, {split: counts.triples.get(split, 0) for split in ("valid", "test")}
    limits = {"valid": (settings.max_valid_triples, settings.max_final_triples), "test": (settings.max_final_triples,)}
    ranked = max(min(triples[split], limit or triples[split]) for split in triples for limit in limits[split])
    rows = shard_rows(config, counts)
    if config.cluster.gpus_per_worker == 0:
        rows = min(rows, CACHED_ROWS)
    scores = 2 * config.evaluate.batch_size * rows * FLOAT
    block = min(config.evaluate.memory_mb << 20, scores + 8 * ranked * scorer.entity_width * FLOAT)
    return block + 2 * ranked * 8 * INDEX + max(triples.values()) * 3 * INDEX  # a split is read before some are chosen


def _training_triples(config: RunConfig, counts: GraphCounts) -> int:
    own = -(-counts.triples.get("train", 0) // config.train.workers)
    order = INDEX + (SORT_BYTES if config.train.resident_share < 1 else 0)
    return 2 * own * SORTED_QUERY_BYTES if over_all_entities(config) else own * (3 * 4 + order)


def _batches(config: RunConfig, counts: GraphCounts) -> int:
    sizes = step_sizes(config, counts)
    used = 2 * (sizes.own + sizes.drawn)
    marks = counts.entities * (1 + INDEX) if used * MARKED_SHARE >= counts.entities else 0
    windows = 2 if config.cluster.threads > 1 else 1  # the next one is made while the steps of one compute
    return windows * (WINDOW * (sizes.own * 6 + sizes.drawn * 2) * INDEX + marks)


def makes_batches_on_gpu(config: RunConfig) -> bool:
    """Return True if the batches of sampled training are made on a GPU."""
    if config.cluster.gpus_per_worker == 0 or over_all_entities(config):
        return False
    chosen = config.negatives
    here = not chosen.pool.actors and config.train.resident_share == 1
    return here and draws_on_tensors(chosen.source, chosen.options)


def _batches_on_device(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    """Return the bytes of what a GPU makes batches of, of the batches of a window, and of what one of them needs."""
    sizes, train = step_sizes(config, counts), counts.triples.get("train", 0)
    own = -(-train // config.train.workers) * (3 * 4 + ORDERS * INDEX)
    known = 2 * train * 2 * INDEX if config.negatives.filter else 0
    masks = sizes.scores * (WINDOW + (MASKED_IDS * INDEX if config.negatives.filter else 0))
    ids = 2 * (sizes.own + sizes.drawn)
    batches = WINDOW * (sizes.own * 6 + sizes.drawn * 2) * INDEX + SORTED_IDS * ids * INDEX
    return own + known + masks + batches + _negative_source(config, counts, scorer)


def _negative_source(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    if over_all_entities(config):
        return 0
    chosen, train = config.negatives, counts.triples.get("train", 0)
    here = [(chosen.pool.fallback, {}), *_mined(config)] if chosen.pool.actors else [(chosen.source, chosen.options)]
    drawn, workers = step_sizes(config, counts).own, config.train.workers
    sizes = RunSizes(2 * train, counts.entities, scorer.entity_width, workers, drawn, workers * drawn)
    own = sum(source_memory(name, options, sizes) for name, options in here)
    return own + 3 * 4 * train if own else 0  # such a source holds the training triples


def published_bytes(config: RunConfig, entities: int, scorer: Scorer) -> int:
    """Return the bytes of the vectors of ``entities`` that workers publish to actors, in Ray's object store: two
    versions for each source, the current one and the next while it is published."""
    half = not config.negatives.pool.sync
    sizes = [
        2 if half and SOURCES[name].hosted_precision == "float16" else FLOAT for name, _ in _drawn_by_actors(config)
    ]
    return PUBLISHED_VERSIONS * entities * _candidate_width(scorer) * sum(sizes)


def message_bytes(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    """Return the bytes of the requests of a worker that are under way, at most, and of their replies, in Ray's object
    store."""
    own, count, width = step_sizes(config, counts).own, config.negatives.count, _candidate_width(scorer)
    steps = min(2 * config.negatives.pool.depth, _all_steps(config, counts))
    each = [
        QUERY_BYTES
        + FLOAT * sum(_vectors_of_request(SOURCES[name].requires, scorer))
        + count * REPLY_BYTES
        + generated_bytes(name, options, width)
        for name, options in _hosted_draws(config)
    ]
    return steps * own * sum(each)


def _gathered(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    """Return the bytes of the rows and vectors that a worker gathers for the requests of a message, for one source
    after the other."""
    depth, own = config.negatives.pool.depth, step_sizes(config, counts).own
    steps = min(2 * depth, depth + TOGETHER, _all_steps(config, counts))
    vectors = [_vectors_of_request(SOURCES[name].requires, scorer) for name, _ in _hosted_draws(config)]
    each = [2 * (scorer.entity_width if query else 0) + 2 * query + 2 * answer for query, answer in vectors]
    return steps * own * max(each, default=0) * FLOAT


def _all_steps(config: RunConfig, counts: GraphCounts) -> int:
    return config.train.epochs * -(-counts.triples.get("train", 0) // config.train.batch_size)


def _hosted_draws(config: RunConfig) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the sources that actors draw from."""
    if not config.negatives.pool.actors or over_all_entities(config):
        return []
    parts = hosted_parts(config.negatives.source, config.negatives.options).values()
    return [(name, options) for name, options in parts if SOURCES[name].hosted_reply == "negatives"]


def _vectors_of_request(requires: str, scorer: Scorer) -> tuple[int, int]:
    """Return the floats of the vectors of a query and of its answer in a request."""
    query = _query_width(scorer) if requires in ("queries", "both") else 0
    return query, _candidate_width(scorer) if requires in ("answers", "both") else 0


def actor_footprint(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> dict[str, int]:
    """Estimate the bytes of the largest actor of the negative pool, by use; empty without actors.

    Published vectors are not among them: actors map them from Ray's object store.
    """
    chosen, train = config.negatives, counts.triples.get("train", 0)
    if not chosen.pool.actors or over_all_entities(config):
        return {}
    hosted = hosted_parts(chosen.source, chosen.options).values()
    draws = _hosted_draws(config)
    newer = sum(SOURCES[name].requires in ("answers", "both") for name, _ in draws)  # vectors of answers in requests
    drawn = step_sizes(config, counts).own
    # An actor has the state of every worker, and draws for one of them at a time.
    sizes = RunSizes(2 * train, counts.entities, scorer.entity_width, 1, drawn, drawn)
    tables = (len(hosted) - len(draws)) * (8 * train + table_memory(counts.relations, scorer.relation_width))
    requests = [_request_floats(SOURCES[name].requires, scorer) for name, _ in draws]
    return {
        "base process": BASE_PROCESS,
        "training triples": 3 * 4 * train,
        "negative source": sum(source_memory(name, options, sizes) for name, options in draws) + tables,
        "requests": drawn * (max(requests) * FLOAT + chosen.count * DRAW_BYTES) if draws else 0,
        "vectors of answers": newer * counts.entities * (_candidate_width(scorer) + 1) * FLOAT,
    }


def _request_floats(requires: str, scorer: Scorer) -> int:
    """Return the floats of a query in a request: its ids, and its vectors as they came, copied and put in order."""
    query, answer = _vectors_of_request(requires, scorer)
    return 24 + 3 * query + 2 * answer


def _published(config: RunConfig, counts: GraphCounts, scorer: Scorer) -> int:
    sources, rows = _drawn_by_actors(config), shard_rows(config, counts)
    if not sources:
        return 0
    copied = config.model.dtype != "float32" or type(scorer).candidates is not Scorer.candidates
    copies = (FLOAT if copied else 0) + (0 if config.negatives.pool.sync else 2)  # in float32, and in half precision
    return published_bytes(config, rows, scorer) + rows * _candidate_width(scorer) * copies


def _drawn_by_actors(config: RunConfig) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the sources for which workers publish entity vectors to actors."""
    return [(name, options) for name, options in _hosted_draws(config) if SOURCES[name].requires != "nothing"]


def _widest(scorer: Scorer) -> int:
    """Return the floats of an entity row or of a candidate vector, whichever is wider."""
    return max(scorer.entity_width, _candidate_width(scorer))


def _candidate_width(scorer: Scorer) -> int:
    if type(scorer).candidates is Scorer.candidates:
        return scorer.entity_width
    return scorer.candidates(torch.empty(1, scorer.entity_width, device=_device(scorer))).shape[1]


def _query_width(scorer: Scorer) -> int:
    def width() -> int:
        return scorer.query(*_rows_of_queries(scorer, 1, "meta")).shape[1]

    return _counted(width, 2 * max(scorer.entity_width, scorer.relation_width))


def _mined(config: RunConfig) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the sources for which actors only compare relations, and which draw in the step."""
    parts = hosted_parts(config.negatives.source, config.negatives.options).values()
    return [part for part in parts if SOURCES[part[0]].hosted_reply == "similarities"]


def _known_facts(config: RunConfig, counts: GraphCounts) -> int:
    filtered = config.negatives.filter and not over_all_entities(config)
    train = 2 * counts.triples.get("train", 0) * SORTED_QUERY_BYTES
    return known_facts(counts.triples, shard_rows(config, counts)) + (train if filtered else 0)
