"""Graph store of a graph with planted rules."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distkg.data.assemble import Graph, PrepareReport, SplitPart, StorePlan, assemble
from distkg.data.errors import IngestError
from distkg.data.prepare import report
from distkg.data.readers.problems import Problems
from distkg.data.rules.growing import MIXED, GraphSizes
from distkg.data.rules.rule_graph import SIZES, RuleGraph, rule_graph
from distkg.data.spool import Spool
from distkg.data.store.classes import Declared
from distkg.data.store.writer import StoreWriter

BOUNDS = {"entities": (12, 1 << 20), "relations": (2, 1 << 12), "triples": (12, 1 << 25)}


def generate_rules(
    store: str,
    *,
    seed: int,
    entities: int | None = None,
    relations: int | None = None,
    triples: int | None = None,
    partitions: int = 1,
) -> tuple[PrepareReport, tuple[str, ...]]:
    """Store the graph of a seed (``rule_graph``), with the kinds of its entities as classes.

    Its held-out facts are divided into valid and test. Sizes that are None are drawn by the seed.

    Returns:
        the report, and the rules in words.

    Raises:
        IngestError: a size out of bounds, or triples without entities.
        StoreError: the folder is not free, or a write fails.
    """
    started = time.perf_counter()
    graph = rule_graph(seed, sizes_of(entities, relations, triples))
    plan = StorePlan("generated with rules", seed, partitions, "random")
    with StoreWriter(store) as writer:
        parts = {name: _part(writer, name, facts) for name, facts in _splits(graph, seed).items()}
        labels = pa.array(entity_labels(graph), pa.large_utf8())
        written = Graph(parts, labels, pa.array(graph.names, pa.large_utf8()), _declared(graph))
        problems = Problems("fail", writer.open_rejects)
        manifest = assemble(writer, written, plan, problems, lambda stage, done: None)
    rules = tuple(rule.in_words(graph.names) for rule in graph.rules)
    return report(store, manifest, time.perf_counter() - started), rules


def sizes_of(entities: int | None, relations: int | None, triples: int | None) -> GraphSizes:
    """Return the ranges of sizes: a number, or where there is none, that of ``SIZES``.

    Raises:
        IngestError: a number out of bounds, or triples without entities.
    """
    for (name, (low, high)), number in zip(BOUNDS.items(), (entities, relations, triples), strict=True):
        if number is not None and not low <= number <= high:
            raise IngestError(
                f"--{name} {number:,}: a graph with --rules has from {low:,} to {high:,} {name}. Choose from these, "
                "or leave --rules out for a graph of any size"
            )
    if triples is not None and entities is None:
        raise IngestError("--triples with --rules needs --entities, because the seed draws the number of entities")
    density = SIZES.density if triples is None or entities is None else (triples / entities, triples / entities)
    return GraphSizes(
        SIZES.entities if entities is None else (entities, entities),
        SIZES.relations if relations is None else (relations, relations),
        density,
    )


def entity_labels(graph: RuleGraph) -> list[str]:
    """Return a label for each entity, by its kind: ``thing2_17``, ``class_3``."""
    place = np.arange(graph.entities) - np.searchsorted(graph.kind, graph.kind)  # entities are sorted by kind
    return [f"{_kind_name(graph, kind)}_{n}" for n, kind in zip(place.tolist(), graph.kind.tolist(), strict=True)]


def _kind_name(graph: RuleGraph, kind: int) -> str:
    return "class" if kind == graph.classes else f"thing{kind}"


def _splits(graph: RuleGraph, seed: int) -> dict[str, NDArray[np.int32]]:
    held_out = np.random.default_rng([seed, 1]).permutation(graph.held_out)
    half = len(held_out) // 2
    return {"train": graph.train, "valid": held_out[:half], "test": held_out[half:]}


def _part(writer: StoreWriter, name: str, facts: NDArray[np.int32]) -> SplitPart:
    spool = Spool(writer.scratch / name)
    spool.append(facts)
    spool.finish()
    return SplitPart(spool)


def _declared(graph: RuleGraph) -> Declared:
    """Return the kind of each entity as its class, and those of heads and tails as domains and ranges."""

    def name(kind: int) -> str:
        return "-" if kind == MIXED else _kind_name(graph, kind)

    of_entities = zip(entity_labels(graph), map(name, graph.kind.tolist()), strict=True)
    of_relations = zip(graph.names, graph.ends.tolist(), strict=True)
    return Declared(list(of_entities), [(relation, name(head), name(tail)) for relation, (head, tail) in of_relations])
