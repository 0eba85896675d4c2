"""Exact ranks of the relation between two entities among all relations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distkg.data.store.graph_store import Store, StoreError
from distkg.data.store.known_relations import KnownRelations
from distkg.evaluation.metrics import Metrics, ranking_metrics, subsample
from distkg.evaluation.ranking import Ranking, never
from distkg.evaluation.score_blocks import ScoreError
from distkg.foundation.graph_scorer import GraphScorer
from distkg.foundation.models import FoundationModel
from distkg.sharding.ranks import Ranks

BATCH_SIZE = 16  # pairs; small, because a query reads the whole graph

ScoreRelations = Callable[[np.ndarray], Tensor]
"""Function from pairs int [b, 2], (head, tail), to scores of all relations without inverses, float32 [b, R]."""


def rank_relations(
    score: ScoreRelations,
    triples: np.ndarray,
    known: KnownRelations | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    ranks: Ranks | None = None,
    hurries: Callable[[], bool] = never,
) -> Ranking:
    """Rank the relations of triples int [n, 3]; every distinct pair is scored once.

    Args:
        known: known relations between the pairs, which are excluded from the competitors. None ranks among all
            relations, as in the published results of TRIX.
        batch_size: pairs scored together.
        ranks: ranks that share the pairs, batch by batch in turn; collective among them, and every rank gets the
            result.
        hurries: called before each batch; once it returns True, no more scores are computed and the result is invalid.

    Returns:
        Ranks whose ``queries`` are pairs (head, tail) and whose ``answers`` are relations.

    Raises:
        ScoreError: a score is NaN or infinite.
    """
    pairs, own = np.unique(triples[:, [0, 2]], axis=0, return_inverse=True)
    order = np.argsort(own.ravel(), kind="stable")
    ends = np.searchsorted(own.ravel()[order], np.arange(len(pairs) + 1))
    counts = np.zeros((3, len(triples)), np.int64)  # greater, equal, broken
    first, size = (0, 1) if ranks is None else (ranks.rank, ranks.size)
    for low in range(first * batch_size, len(pairs), size * batch_size):
        if hurries():
            break
        batch = pairs[low : low + batch_size]
        mine = order[ends[low] : ends[min(low + batch_size, len(pairs))]]
        counts[:, mine] = _counted(score(batch).cpu(), own.ravel()[mine] - low, triples[mine], known)
    if ranks is not None:
        ranks.sum_array(counts)
    greater, equal, broken = counts
    if broken.any():
        head, _, tail = triples[int(broken.argmax())]
        raise ScoreError(
            f"scores of relations from entity {head} to {tail} are NaN or infinite: the model has diverged. Use an "
            "earlier checkpoint, or train with a lower learning rate"
        )
    return Ranking(triples[:, [0, 2]].astype(np.int32), triples[:, 1].astype(np.int32), greater, equal)


def _counted(scores: Tensor, row: np.ndarray, triples: np.ndarray, known: KnownRelations | None) -> np.ndarray:
    """Count relations that score above and equal to those of triples [m, 3], and mark triples with non-finite scores:
    int64 [3, m].

    ``row`` [m] is the index of each triple's pair in scores [b, R].
    """
    scores_of_triples = scores[torch.from_numpy(row)]
    own = scores_of_triples.gather(1, torch.from_numpy(triples[:, 1:2].astype(np.int64)))
    competing = torch.ones_like(scores_of_triples, dtype=torch.bool)
    if known is not None:
        competing = ~torch.from_numpy(known.mask(triples[:, [0, 2]]))
    competing.scatter_(1, torch.from_numpy(triples[:, 1:2].astype(np.int64)), False)
    greater, equal = ((how(scores_of_triples, own) & competing).sum(1) for how in (torch.gt, torch.eq))
    return torch.stack([greater, equal, (~scores_of_triples.isfinite()).any(1).long()]).numpy()


def known_relations_of(store: Store, triples: np.ndarray) -> KnownRelations:
    """Return all known relations, of any split, between the pairs of these triples [n, 3]; the store is streamed."""
    facts = store.iter_triples(list(store.manifest.triples))
    return KnownRelations.of(facts, store.num_entities, store.num_relations, triples[:, [0, 2]])


def evaluate_relations(
    model: FoundationModel,
    store: Store,
    split: str = "test",
    *,
    filtered: bool = True,
    triples: int | None = None,
    batch_size: int = BATCH_SIZE,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Return metrics of the relations of a split, or of a random subset of ``triples`` of it, with the training facts
    of the store as the graph. ``ranks`` share the pairs; collective among them.

    Returns:
        ``split``; ``metrics`` over all triples; ``by_relation``, a list with the relation's label.

    Raises:
        StoreError: the split is empty.
        UnsupportedQuestionError: the model ranks entities.
        ScoreError: a score is NaN or infinite.
    """
    facts = store.triples(split)
    if not len(facts):
        raise StoreError(f"split {split!r} of {store.shown} holds no triples. Splits: {store.manifest.triples}")
    facts = subsample(facts, triples, seed=0)
    known = known_relations_of(store, facts) if filtered else None
    scorer = GraphScorer(model, model.graph_of(store))
    ranking = rank_relations(scorer.relation_scores, facts, known, batch_size=batch_size, ranks=ranks)
    return {"split": split, "metrics": ranking_metrics(ranking), "by_relation": _by_relation(ranking, store)}


def _by_relation(ranking: Ranking, store: Store) -> list[dict[str, Any]]:
    labels = store.relation_labels()
    rows: list[dict[str, Any]] = []
    for relation in np.unique(ranking.answers):
        own = ranking.answers == relation
        metrics: Metrics = ranking_metrics(
            Ranking(ranking.queries[own], ranking.answers[own], ranking.greater[own], ranking.equal[own])
        )
        rows.append({"relation": labels[int(relation)].as_py(), **metrics})
    return rows
