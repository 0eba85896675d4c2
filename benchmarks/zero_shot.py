"""A foundation model on graphs that it was not trained on: filtered ranks beside published ones, and time per query.

Published ranks lose every tie, so the columns named so are pessimistic ranks; MRR and Hits@10 are realistic ones.

Ranking sorts queries by relation. Some of them are scored sorted, in random order with relation states kept from batch
to batch, and in random order with states encoded anew in each batch; the three take turns, and the columns are medians
of the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Figures, begin, finish, graph_settings, known_answers_of
from benchmarks.processes import alone
from distkg.data.store.graph_store import Store
from distkg.evaluation.metrics import ranking_metrics
from distkg.evaluation.ranking import Ranking, rank_by_scores
from distkg.foundation.graph_scorer import GraphScorer
from distkg.foundation.model_files import load_model
from distkg.foundation.models import FoundationModel, KnowledgeGraph

BATCH_SIZE, ORDERED_QUERIES, ROUNDS = 16, 256, 3
PUBLISHED = {
    "GraIL-FB15k-237-v1": (0.4863, 0.6569),
    "GraIL-FB15k-237-v2": (0.5006, 0.6943),
    "GraIL-WN18RR-v1": (0.5929, 0.7788),
    "GraIL-WN18RR-v2": (0.6205, 0.7518),
    "GraIL-NELL-995-v1": (0.7166, 0.8607),
    "InGram-FB-50": (0.3303, 0.5357),
    "InGram-WK-50": (0.1577, 0.2957),
    "InGram-NL-50": (0.3976, 0.5489),
}
"""Folder of the store → MRR and Hits@10 of ultra_3g there (an independent run of the published code, per graph)."""


def named(address: str) -> str:
    """The name that a store is shown by: of its folder, or of the one that holds its two graphs."""
    parts = Path(address.rstrip("/")).parts
    return parts[-2] if parts[-1] in ("training", "inference") else parts[-1]


def some_test_triples(store: Store, triples: int | None) -> np.ndarray:
    """So many triples of the test split, the same at every call; all of them for None."""
    every = store.triples("test")
    if triples is None or triples >= len(every):
        return every
    return every[np.sort(np.random.default_rng(0).permutation(len(every))[:triples])]


def rank_test(
    model: FoundationModel, store: Store, triples: int | None = None, graph: KnowledgeGraph | None = None
) -> Ranking:
    """Ranks of the test split, or of so many of its triples, reasoned from the store's training facts or ``graph``."""
    chosen = some_test_triples(store, triples)
    rank = partial(rank_by_scores, num_relations=store.num_relations, batch_size=BATCH_SIZE)
    graph = graph or KnowledgeGraph.of_store(store)
    return rank(GraphScorer(model, graph).scores, chosen, known_answers_of(store, chosen))


def by_order_of_queries(model: FoundationModel, graph: KnowledgeGraph, queries: np.ndarray) -> dict[str, float]:
    """Milliseconds per query int [q, 2], in batches."""
    shuffled = queries[np.random.default_rng(0).permutation(len(queries))]
    kept, ordered = GraphScorer(model, graph), GraphScorer(model, graph)
    runs: dict[str, tuple[np.ndarray, Callable[[], GraphScorer]]] = {
        "ms/query, by relation": (queries[np.argsort(queries[:, 1], kind="stable")], lambda: ordered),
        "ms/query, random": (shuffled, lambda: kept),
        "ms/query, random, encoded anew": (shuffled, lambda: GraphScorer(model, graph)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, (own, scorer_of_batch) in runs.items():
            started = time.perf_counter()
            for low in range(0, len(own), BATCH_SIZE):
                scorer_of_batch().scores(own[low : low + BATCH_SIZE])
            seconds[name].append(time.perf_counter() - started)
    return {name: float(1e3 * np.median(each) / len(queries)) for name, each in seconds.items()}


def columns_of(ranking: Ranking) -> dict[str, float]:
    """Realistic and pessimistic figures of a ranking."""
    metrics, worst = ranking_metrics(ranking), ranking.pessimistic
    return {
        "MRR": metrics["mrr"],
        "Hits@10": metrics["hits@10"],
        "MRR, ties lost": float((1 / worst).mean()),
        "Hits@10, ties lost": float((worst <= 10).mean()),
    }


def _measured(model: str, address: str, triples: int | None) -> dict[str, float]:
    loaded, store = load_model(Path(model)), Store.open_inference(address)
    graph = KnowledgeGraph.of_store(store)
    rank_test(loaded, store, 1, graph)  # compiles, and builds the graph of relations
    started = time.perf_counter()
    ranking = rank_test(loaded, store, triples, graph)
    seconds = time.perf_counter() - started
    asked = np.unique(ranking.queries, axis=0)
    some = asked[np.random.default_rng(1).permutation(len(asked))[:ORDERED_QUERIES]]
    return {
        **columns_of(ranking),
        "ms/query": 1e3 * seconds / len(asked),
        "queries": len(asked),
        "seconds": seconds,
        **by_order_of_queries(loaded, graph, some),
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every store, one after the other."""
    session = begin(__file__, str(__doc__), arguments, "model", "stores", repetitions=1)
    figures, model = Figures(), str(session.options.model)
    own = load_model(Path(model))
    for address in session.options.stores:
        columns = alone(_measured, model, address, 4 if session.quick else None).value
        name = named(address)
        published = PUBLISHED.get(name) if own.name == "ultra" else None
        if published is not None:
            columns |= {"published MRR": published[0], "published Hits@10": published[1]}
        figures.add(name, columns)
    settings = {
        "model": own.name,
        "options": own.options.model_dump(),
        "batch_size": BATCH_SIZE,
        "ordered_queries": ORDERED_QUERIES,
        "threads": torch.get_num_threads(),
        "graphs": {named(address): graph_settings(Store.open_inference(address)) for address in session.options.stores},
    }
    return finish(session, settings, figures, part=Path(model).name)


if __name__ == "__main__":
    main()
