"""Metrics of rankings: overall, by side, by relation and by category of relation.

Ranks are realistic (the mean of the optimistic and the pessimistic rank) unless a name says otherwise, as recommended
by Berrendorf et al. 2020 (arXiv 2002.06914).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from distkg.data.store.graph_store import Store, StoreError
from distkg.data.store.query_index import QueryIndex
from distkg.data.store.relation_categories import count_queries
from distkg.embedding.model import Model
from distkg.evaluation.filtered_triples import FilteredTriples, Rank
from distkg.evaluation.ranking import Ranking, rank_answers
from distkg.graph.directions import inverse_of
from distkg.randomness import Purpose, mixed_seed
from distkg.sharding.ranks import Ranks

HITS = (1, 3, 10)
CATEGORIES = ("1-1", "1-n", "n-1", "n-n")
HALF_LINKS = ("both seen", "query seen", "answer seen", "neither seen")
Metrics = dict[str, float]


def ranking_metrics(ranking: Ranking) -> Metrics:
    """Return metrics over all queries.

    Returns:
        ``mrr``, ``hits@1``, ``hits@3``, ``hits@10`` (shares in [0, 1]) and ``mean_rank`` of realistic ranks,
        ``mrr_optimistic``, ``mrr_pessimistic``, and ``queries``, their number.

    Raises:
        ValueError: there are no queries.
    """
    return _grouped(ranking, np.zeros(len(ranking.answers), np.int64), 1)[0]


def metrics_by_side(ranking: Ranking, num_relations: int) -> dict[str, Metrics]:
    """Return metrics of queries for tails, (h, r) → t, and for heads, (t, r⁻¹) → h, as ``tail`` and ``head``."""
    side = (ranking.queries[:, 1] >= num_relations).astype(np.int64)
    tail, head = _grouped(ranking, side, 2)
    return {"tail": tail, "head": head}


def metrics_by_relation(ranking: Ranking, num_relations: int) -> list[dict[str, Any]]:
    """Return metrics of each relation that has queries, with its id as ``relation``, and the MRR of each side."""
    relation = ranking.queries[:, 1] % num_relations
    return [
        {"relation": index, **metrics}
        for index, metrics in enumerate(_with_sides(ranking, relation, num_relations, num_relations))
        if metrics
    ]


def metrics_by_category(ranking: Ranking, categories: Sequence[str], num_relations: int) -> dict[str, Metrics]:
    """Return metrics of relations pooled by category (``categories[r]``), with the MRR of each side."""
    code = np.array([CATEGORIES.index(category) for category in categories], np.int64)
    pooled = _with_sides(ranking, code[ranking.queries[:, 1] % num_relations], len(CATEGORIES), num_relations)
    return {name: metrics for name, metrics in zip(CATEGORIES, pooled, strict=True) if metrics}


def metrics_by_half_link(ranking: Ranking, facts: Iterable[np.ndarray], num_relations: int) -> dict[str, Metrics]:
    """Return metrics of triples (anchor, relation, answer) grouped by their half links in batches of facts [b, 3].

    The groups are ``query seen``, with a fact (anchor, relation, ·); ``answer seen``, with a fact (·, relation,
    answer); ``both seen``; and ``neither seen``. A model that only knows which entities occur with a relation ranks
    well if the answer is seen, and badly otherwise ("Half a Link", arXiv 2606.18001).
    """
    reversed_queries = np.stack([ranking.answers, inverse_of(ranking.queries[:, 1], num_relations)], 1)
    index = QueryIndex(np.concatenate([ranking.queries, reversed_queries]), num_relations)
    seen = np.zeros(len(index.keys), np.bool_)
    for triples in facts:
        seen[index.matches(triples)[0]] = True
    query, of_answer = (seen[index.places(queries)] for queries in (ranking.queries, reversed_queries))
    code = 2 * ~query + ~of_answer
    # Codes in the order of HALF_LINKS: 0 both seen, 1 query seen, 2 answer seen, 3 neither seen.
    return {name: metrics for name, metrics in zip(HALF_LINKS, _grouped(ranking, code, 4), strict=True) if metrics}


def subsample(triples: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """Return ``limit`` of the triples [n, 3] at random, the same for the same seed; all if there are fewer or no
    limit."""
    if limit is None or limit >= len(triples):
        return triples
    chooser = np.random.default_rng(mixed_seed(Purpose.VALIDATION, seed))
    return triples[np.sort(chooser.choice(len(triples), limit, replace=False))]


def relation_categories(store: Store, ranks: Ranks) -> list[str]:
    """Return the category of each relation from training facts; collective, each rank counts a part of the queries."""
    facts, relations = store.manifest.triples["train"], store.num_relations
    counts = count_queries(lambda: store.iter_triples(["train"]), facts, relations, rank=ranks.rank, ranks=ranks.size)
    for array in (counts.facts, counts.queries):
        ranks.sum_array(array)
    return counts.categories()


_categories: WeakKeyDictionary[Store, list[str]] = WeakKeyDictionary()
"""Categories of the relations of open stores: a run evaluates several splits of one."""


def evaluate_triples(
    model: Model,
    store: Store,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    *,
    batch_size: int = 256,
    memory_mb: int = 256,
) -> dict[str, Any]:
    """Evaluate an embedding model as ``evaluate_ranks``. Collective; every rank gets the result."""
    rank = partial(rank_answers, model, batch_size=batch_size, memory_mb=memory_mb)
    return evaluate_ranks(store, split, rank, limit, seed, ranks=model.ranks, sharded=True)


def evaluate_ranks(
    store: Store,
    split: str,
    rank: Rank,
    limit: int | None = None,
    seed: int = 0,
    *,
    ranks: Ranks | None = None,
    sharded: bool = False,
) -> dict[str, Any]:
    """Return filtered metrics of a split of the store, or of a random subset of ``limit`` triples.

    Facts are streamed from the store. ``ranks`` share the work of counting them; collective among them. If the model is
    ``sharded``, each scores its own entities.

    Returns:
        ``split``; ``metrics`` over both sides; ``by_side``; ``by_category``; ``by_half_link``; ``by_relation``, a list
        with the relation's label and category.

    Raises:
        StoreError: the split is empty.
        ScoreError: a score is NaN or infinite.
    """
    triples = store.triples(split)
    if not len(triples):
        raise StoreError(f"split {split!r} of {store.shown} holds no triples. Splits: {store.manifest.triples}")
    triples = subsample(triples, limit, seed)
    ranking = FilteredTriples(store, triples, ranks, sharded=sharded).rank(rank)
    if store not in _categories:
        _categories[store] = relation_categories(store, ranks or Ranks.single())
    categories = _categories[store]
    labels = store.relation_labels()
    by_relation = [
        {**row, "relation": labels[row["relation"]].as_py(), "category": categories[row["relation"]]}
        for row in metrics_by_relation(ranking, store.num_relations)
    ]
    return {
        "split": split,
        "metrics": ranking_metrics(ranking),
        "by_side": metrics_by_side(ranking, store.num_relations),
        "by_category": metrics_by_category(ranking, categories, store.num_relations),
        "by_half_link": metrics_by_half_link(ranking, store.iter_triples(["train"]), store.num_relations),
        "by_relation": by_relation,
    }


def _with_sides(ranking: Ranking, group: np.ndarray, groups: int, num_relations: int) -> list[Metrics]:
    """Return metrics of each group, with ``mrr_tail`` and ``mrr_head``; empty for a group without queries."""
    side = ranking.queries[:, 1] >= num_relations
    total = _grouped(ranking, group, groups)
    apart = _grouped(ranking, group * 2 + side, groups * 2)
    for index, metrics in enumerate(total):
        for name, part in zip(("mrr_tail", "mrr_head"), apart[2 * index : 2 * index + 2], strict=True):
            if part:
                metrics[name] = part["mrr"]
    return total


def _grouped(ranking: Ranking, group: np.ndarray, groups: int) -> list[Metrics]:
    """Return metrics of each of ``groups`` groups from each query's group [q]; empty for a group without queries."""
    if not len(group):
        raise ValueError("metrics cannot be computed: there are no queries")
    rank = ranking.realistic
    values = {
        "mrr": 1 / rank,
        **{f"hits@{k}": (rank <= k).astype(np.float64) for k in HITS},
        "mean_rank": rank,
        "mrr_optimistic": 1 / ranking.optimistic,
        "mrr_pessimistic": 1 / ranking.pessimistic,
    }
    queries = np.bincount(group, minlength=groups)
    sums = {name: np.bincount(group, weights=value, minlength=groups) for name, value in values.items()}
    return [
        {**{name: float(total[g] / queries[g]) for name, total in sums.items()}, "queries": int(queries[g])}
        if queries[g]
        else {}
        for g in range(groups)
    ]
