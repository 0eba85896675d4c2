"""Plan of a foundation-model run: sizes of its graphs, and bytes and seconds of a worker."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

from distkg.config import RunConfig
from distkg.data.rules.rule_graph import SIZES
from distkg.data.storage.working_copy import folder_at
from distkg.data.store.graph_store import Store
from distkg.data.tokens.token_store import read_modalities
from distkg.embedding.load_run import row_of_run
from distkg.foundation.batches import queries_of_rank, steps_of_epoch
from distkg.foundation.footprint import (
    Growth,
    MeasuredWork,
    cached_states,
    growth,
    own_states,
    ranking,
    sampled_step,
    seconds_of_query,
    some_part,
    training_step,
)
from distkg.foundation.graphs.generated_graphs import GeneratedGraph, largest_graph
from distkg.foundation.graphs.training_graphs import LearnedGraph, graphs_of, make_indexes
from distkg.foundation.initial_model import check_foundation, initial_model, made_graph
from distkg.foundation.models import FoundationModel
from distkg.negatives import RunSizes, source_memory
from distkg.negatives.kmas.relation_similarity import table_memory
from distkg.planning.plan import GraphSize, Plan, PlanError, refusal, with_fewest_workers
from distkg.planning.sizes import BASE_PROCESS, FLOAT, INDEX, known_facts
from distkg.sharding.zero_copy import packed

GRAPHS, EDGES = "graphs", "weights of edges"
HEAP = 2.5  # resident memory per byte of tensors, due to huge pages and fragmentation; measured: 1.6 to 2.5
EDGE_SHARE = 2  # factor of a graph's bytes: layers over relations keep a weight of 4 bytes for each edge of 12
FACT_BYTES = 64  # per fact: keys of its two directions, and their mask
GENERATED, HELD_GENERATED = (
    "generated graphs",
    3,
)  # one is made while the last is held; some have more facts than others


def plan_foundation(
    config: RunConfig, available: int | None, *, workers_of_node: int = 1, slowdown: float | None = None
) -> Plan:
    """Return the plan of a run of ``config``. The graphs are built one after the other to measure their sizes.

    Args:
        available: bytes per worker, or None for no limit.
        workers_of_node: number of workers that share the graphs of a node.
        slowdown: factor by which a worker is slower than this process alone; None for no estimate of time.

    Raises:
        PlanError: the run needs more than is available.
        ConfigError, UnknownNameError, StoreError, SourceError: as for ``check_foundation``.
    """
    try:
        return _planned(config, available, workers_of_node, slowdown)
    finally:
        _made.cache_clear()
        _largest_generated.cache_clear()


def _planned(config: RunConfig, available: int | None, workers_of_node: int, slowdown: float | None) -> Plan:
    check_foundation(config)
    stores = [Store.open(address) for address in graphs_of(config)]
    plan = _without_graphs(config, stores, available)
    _refuse_too_large(config, stores, plan)
    sizes = [
        replace(graph, bytes=_bytes_of(store.address, _what_is_made(config)))
        for graph, store in zip(plan.graphs, stores, strict=True)
    ]
    shared = -(-sum(size.bytes for size in sizes) // workers_of_node)
    sizes += _generated(config)
    edges = 0 if config.data.fanouts else EDGE_SHARE * max(size.bytes for size in sizes)
    held = HELD_GENERATED * sum(size.bytes for size in sizes[len(stores) :])
    memory = {**plan.memory, GRAPHS: shared, EDGES: edges, **({GENERATED: held} if held else {})}
    plan = replace(plan, graphs=tuple(sizes), memory=memory)
    _refuse_too_large(config, stores, plan)
    return plan if slowdown is None else replace(plan, seconds={"compute": slowdown * _seconds(config, stores, plan)})


def _generated(config: RunConfig) -> list[GraphSize]:
    """Return the size of the largest graph that is generated; none if there are no generated graphs."""
    if not config.data.generated.share:
        return []
    graph = _largest_generated(_what_is_made(config))
    made = graph.made
    sizes = made.entities, made.relations, len(made.train), packed(graph).nbytes
    return [GraphSize("generated, at most", *sizes, generated_share=config.data.generated.share)]


def _without_graphs(config: RunConfig, stores: Sequence[Store], available: int | None) -> Plan:
    model = initial_model(config, [store.manifest for store in stores])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    kept = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    return Plan(
        workers=config.train.workers,
        rows_per_worker=0,
        memory=_memory(config, stores, model, parameters, kept),
        gpu_memory={},
        available=available,
        gpu_available=None,
        steps=steps_of_epoch(config, sum(store.manifest.triples["train"] for store in stores)),
        seconds=None,
        parameters=parameters,
        kept=kept,
        graphs=tuple(_not_made(store, tuple(model.reads)) for store in stores),
        reads=tuple(model.reads),
        epochs=config.train.epochs,
        time_limit=config.train.time_limit_seconds,
        actors=config.negatives.pool.actors,
        actor_memory=actor_memory(config, stores),
    )


def actor_memory(config: RunConfig, stores: Sequence[Store]) -> dict[str, int]:
    """Return the bytes of the largest actor, by use; empty without actors. Graphs are mapped from the object store."""
    if not config.negatives.pool.actors:
        return {}
    model = initial_model(config, [store.manifest for store in stores])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    states = _growth(config, model, "states of relations", own_states, _own_sizes(model, stores), None)
    relations, queries = max(store.num_relations for store in stores), config.evaluate.batch_size
    batch = max(
        states.bytes(min(queries, each.num_relations), each.num_entities, each.num_relations) for each in stores
    )
    width = states.relation / (2 * FLOAT)  # at most: states are one for each query, relation and direction
    return {
        "base process": BASE_PROCESS,
        "relation encoder": 2 * FLOAT * parameters,  # its own weights, and those that a worker publishes
        "states of relations": int(HEAP * batch),
        "similarity of relations": table_memory(relations, math.ceil(width)),
    }


def _own_sizes(model: FoundationModel, stores: Sequence[Store]) -> tuple[int | None, int | None]:
    """Return the numbers of relations and of entities of a model that has vectors for them."""
    return (
        stores[0].num_relations if model.knows_relations else None,
        stores[0].num_entities if model.knows_entities else None,
    )


def _memory(
    config: RunConfig, stores: Sequence[Store], model: FoundationModel, parameters: int, kept: int
) -> dict[str, int]:
    """Return the bytes of the largest worker, by use; the largest graph decides, as a step reads one graph only."""
    own = queries_of_rank(config, 0, with_fewest_workers(config).train.workers)
    sizes, kinds = _own_sizes(model, stores), {kind for store in stores for kind in _kinds(store, tuple(model.reads))}
    count, batch = config.negatives.count, config.evaluate.batch_size
    step = _growth(config, model, f"a step with {count} negatives", training_step(count), sizes, kinds)
    ranked = _growth(config, model, "ranking", ranking, sizes, kinds)
    trained, evaluated = 0, 0
    for store in stores:
        looked_at = _looked_at(config, store, own, 1 + config.negatives.count)
        trained = max(trained, step.bytes(own, looked_at, store.num_relations) + _hidden(store))
        looked_at = _looked_at(config, store, batch, 0)
        scores = 2 * batch * store.num_entities * FLOAT if config.data.fanouts else 0
        cached = cached_states(model, store.num_relations)
        evaluated = max(evaluated, ranked.bytes(batch, looked_at, store.num_relations) + scores + cached)
    if config.data.generated.share:
        settings = config.data.generated
        facts = HELD_GENERATED * settings.entities[1] * SIZES.density[1]
        generated = step.bytes(own, settings.entities[1], settings.relations[1]) + int(facts * FACT_BYTES)
        trained = max(trained, generated)
    accumulators = 2 if config.optimizer.name == "adam" else 1
    copies = 2 if config.train.average == "none" else 4
    return {
        "base process": BASE_PROCESS,
        # Values and their average, and for trained parameters also gradients and optimizer states; all but gradients
        # twice while a checkpoint is written.
        "model and optimizer": FLOAT * (copies * parameters + (parameters - kept) * (1 + 2 * accumulators)),
        "states of a batch": int(HEAP * trained),
        # Evaluation reuses the memory of the states of a batch.
        "evaluation": int(HEAP * max(0, evaluated - trained)) + max(map(_known, stores)),
        "negative source": max(_negative_source(config, store, own) for store in stores),
    }


def _negative_source(config: RunConfig, store: Store, own: int) -> int:
    """Return the bytes of a source beyond the graph that the workers of a node share, with the vectors that it reads;
    ``own`` is the number of queries of a worker."""
    chosen, vectors, width = config.negatives, 0, 0
    if chosen.vectors:
        with folder_at(chosen.vectors) as run:
            width, row_bytes = row_of_run(run)
        vectors = 2 * store.num_entities * row_bytes  # held by each worker, and read in parts
    facts = store.manifest.triples["train"]
    sizes = RunSizes(2 * facts, store.num_entities, width, 1, own, own)
    return source_memory(chosen.source, chosen.options, sizes) + vectors


_growths: dict[str, Growth] = {}
"""Growths that were measured, by all that they depend on: the settings that would help are planned on the same ones."""


def _growth(
    config: RunConfig,
    model: FoundationModel,
    name: str,
    work: MeasuredWork,
    sizes: tuple[int | None, int | None],
    kinds: Collection[str] | None,
) -> Growth:
    settings, tokens = config.model.model_dump_json(), None if kinds is None else sorted(kinds)
    key = json.dumps([name, settings, model.options.model_dump_json(), sizes, tokens])
    if key not in _growths:
        _growths[key] = growth(model, work, *sizes, kinds=kinds)
    return _growths[key]


def _looked_at(config: RunConfig, store: Store, queries: int, candidates: int) -> int:
    """Return the number of entities with a state in a batch of ``queries``: all, or those of a sampled subgraph."""
    if not config.data.fanouts:
        return store.num_entities
    graph = _made(store.address, _what_is_made(config))
    assert graph.surroundings is not None
    anchor = graph.facts.triples[:: max(1, len(graph.facts.triples) // queries), 0][:queries]
    return some_part(graph.facts, graph.surroundings, anchor, candidates)[0].entities


def _hidden(store: Store) -> int:
    """Return the bytes of the mask that hides the facts of a batch."""
    return store.manifest.triples["train"] * FACT_BYTES


def _known(store: Store) -> int:
    """Return the bytes of the queries and known answers of a split while it is ranked."""
    triples = store.manifest.triples
    queries = 2 * max(triples.get("valid", 0), triples.get("test", 0))
    return known_facts(triples, store.num_entities) + queries * 8 * INDEX


def _not_made(store: Store, reads: Sequence[str]) -> GraphSize:
    """Return the size of a graph before it is built, with the kinds of its tokens among ``reads``."""
    triples = store.manifest.triples["train"]
    return GraphSize(store.shown, store.num_entities, store.num_relations, triples, 0, _kinds(store, reads))


def _kinds(store: Store, reads: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of tokens among ``reads`` that the entities of a store have."""
    tokens = read_modalities(store) if reads else {}
    return tuple(name for name in reads if name in tokens)


def _what_is_made(config: RunConfig) -> str:
    """Return the settings on which the indexes of a graph depend, as JSON."""
    model, negatives = config.model, config.negatives
    return json.dumps(
        {
            "model": {"name": model.name, "options": model.options, "start": model.start},
            "negatives": {"source": negatives.source, "options": negatives.options},
            "evaluate": {"max_valid_triples": config.evaluate.max_valid_triples},
            "data": {
                "fanouts": config.data.fanouts,
                "sampler": config.data.sampler,
                "generated": config.data.generated.model_dump(),
            },
        },
        sort_keys=True,
    )


@cache
def _bytes_of(address: str, what_is_made: str) -> int:
    return packed(_made(address, what_is_made)).nbytes


@lru_cache(maxsize=1)  # graphs may be large
def _made(address: str, what_is_made: str) -> LearnedGraph:
    return made_graph(address, RunConfig.model_validate_json(what_is_made))


@lru_cache(maxsize=1)
def _largest_generated(what_is_made: str) -> GeneratedGraph:
    """Return a generated graph of the largest sizes, with what a step makes of it."""
    config = RunConfig.model_validate_json(what_is_made)
    graph = largest_graph(config)
    make_indexes(graph, initial_model(config, []))
    return graph


def _seconds(config: RunConfig, stores: Sequence[Store], found: Plan) -> float:
    """Return the seconds of an epoch, by the share of the steps that learn from generated graphs."""
    share = config.data.generated.share
    stored = (1 - share) * _seconds_of_stores(config, stores, found) if share < 1 else 0.0
    return stored + (share * _seconds_of_generated(config, found) if share else 0.0)


def _seconds_of_generated(config: RunConfig, found: Plan) -> float:
    """Return the seconds of an epoch on generated graphs: measured on a largest one, and scaled to the mean number of
    entities."""
    graph, (low, high) = _largest_generated(_what_is_made(config)), config.data.generated.entities
    model, own = initial_model(config, []), queries_of_rank(config, 0, config.train.workers)
    work = training_step(config.negatives.count)
    if graph.surroundings is not None:
        work = sampled_step(config.negatives.count, graph.surroundings)
    query = seconds_of_query(model, graph.facts, work, own)
    mean = 1.0 if low == high else (high - low) / math.log(high / low) / high
    return found.steps * mean * (own * query + _seconds_to_make(config))


def _seconds_to_make(config: RunConfig) -> float:
    """Return the seconds of a step to make a largest graph, with what the model reads of it."""
    start = time.process_time()
    graph = largest_graph(config)
    make_indexes(graph, initial_model(config, []))
    return (time.process_time() - start) / config.data.generated.steps_per_graph


def _seconds_of_stores(config: RunConfig, stores: Sequence[Store], found: Plan) -> float:
    """Return the seconds of an epoch: measured on the largest graph, and scaled by the facts of the others."""
    largest = max(stores, key=lambda store: store.manifest.triples["train"])
    graph, negatives = _made(largest.address, _what_is_made(config)), config.negatives.count
    model = initial_model(config, [largest.manifest])
    if graph.surroundings is None:
        query = seconds_of_query(model, graph.facts, training_step(negatives))
    else:  # every query of a batch reads the subgraph around all anchors and candidates
        work = sampled_step(negatives, graph.surroundings)
        query = seconds_of_query(model, graph.facts, work, queries_of_rank(config, 0, config.train.workers))
    facts = [store.manifest.triples["train"] for store in stores]
    mean = sum(count * count for count in facts) / sum(facts)  # graphs are drawn in proportion to their facts
    return found.steps * queries_of_rank(config, 0, config.train.workers) * query * mean / max(facts)


def _refuse_too_large(config: RunConfig, stores: Sequence[Store], found: Plan) -> None:
    if found.fits:
        return

    def again(changed: RunConfig) -> Plan:
        changed_plan = _without_graphs(changed, stores, found.available)
        kept = {use: found.memory[use] for use in (GRAPHS, EDGES, GENERATED) if use in found.memory}
        return replace(changed_plan, memory={**changed_plan.memory, **kept})

    raise PlanError(refusal(config, found, _changes(config), again), found)


def _changes(config: RunConfig) -> list[tuple[str, Any]]:
    batch, ranked, workers = config.train.batch_size, config.evaluate.batch_size, config.train.workers
    more = [("train.workers", 2 * workers)] if 2 * workers <= batch else []
    return [
        ("train.batch_size", max(workers, batch // 2)),
        ("train.batch_size", max(workers, batch // 8)),
        ("evaluate.batch_size", max(1, ranked // 4)),
        *more,
    ]
