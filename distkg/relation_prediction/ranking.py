"""Exact ranks of the relation that leads from one entity to another, among all relations."""

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

BATCH_SIZE = 16  # pairs; a question looks at the whole graph

ScoreRelations = Callable[[np.ndarray], Tensor]
"""Pairs int [b, 2], (head, tail) → scores of all relations without inverses, float32 [b, R]."""


def rank_relations(
    score: ScoreRelations,
    triples: np.ndarray,
    known: KnownRelations | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    ranks: Ranks | None = None,
    hurries: Callable[[], bool] = never,
) -> Ranking:
    """Rank the relations of triples int [n, 3]; every distinct pair is asked once.

    Args:
        known: relations that are facts between the pairs: they do not compete. None to rank among all relations, as
            published figures of TRIX do.
        batch_size: pairs scored together.
        ranks: share the pairs, in turns of a batch; collective among them, and every rank gets the result.
        hurries: asked before each batch: scores are left out from then on, and the result means nothing.

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
        asked = pairs[low : low + batch_size]
        mine = order[ends[low] : ends[min(low + batch_size, len(pairs))]]
        counts[:, mine] = _counted(score(asked).cpu(), own.ravel()[mine] - low, triples[mine], known)
    if ranks is not None:
        shared = torch.from_numpy(counts).to(ranks.device)
        ranks.all_reduce(shared)
        counts = shared.cpu().numpy()
    greater, equal, broken = counts
    if broken.any():
        head, _, tail = triples[int(broken.argmax())]
        raise ScoreError(f"scores of relations from entity {head} to {tail} are not finite: the model has diverged")
    return Ranking(triples[:, [0, 2]].astype(np.int32), triples[:, 1].astype(np.int32), greater, equal)


def _counted(scores: Tensor, row: np.ndarray, triples: np.ndarray, known: KnownRelations | None) -> np.ndarray:
    """Relations that score above and as much as those of triples [m, 3], and whether a score is broken: int64 [3, m].
    ``row`` [m] is where their pairs stand in scores [b, R]."""
    of_each = scores[torch.from_numpy(row)]
    own = of_each.gather(1, torch.from_numpy(triples[:, 1:2].astype(np.int64)))
    competing = torch.ones_like(of_each, dtype=torch.bool)
    if known is not None:
        competing = ~torch.from_numpy(known.mask(triples[:, [0, 2]]))
    competing.scatter_(1, torch.from_numpy(triples[:, 1:2].astype(np.int64)), False)
    greater, equal = ((how(of_each, own) & competing).sum(1) for how in (torch.gt, torch.eq))
    return torch.stack([greater, equal, (~of_each.isfinite()).any(1).long()]).numpy()


def known_relations_of(store: Store, triples: np.ndarray) -> KnownRelations:
    """All known relations, of any split, between the pairs of these triples [n, 3]; the store is streamed."""
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
) -> dict[str, Any]:
    """Metrics of a split's relations, or those of ``subsample`` its triples, reasoned from the training facts of the
    store.

    Returns:
        ``split``; ``metrics`` over all triples; ``by_relation``, a list with the relation's label.

    Raises:
        StoreError: the split is empty.
        UnsupportedQuestionError: the model ranks entities.
        ScoreError: a score is NaN or infinite.
    """
    asked = store.triples(split)
    if not len(asked):
        raise StoreError(f"split {split!r} of {store.shown} holds no triples. Splits: {store.manifest.triples}")
    asked = subsample(asked, triples, seed=0)
    known = known_relations_of(store, asked) if filtered else None
    reasoner = GraphScorer(model, model.graph_of(store))
    ranking = rank_relations(reasoner.relation_scores, asked, known, batch_size=batch_size)
    return {"split": split, "metrics": ranking_metrics(ranking), "by_relation": _by_relation(ranking, store)}


def _by_relation(ranking: Ranking, store: Store) -> list[dict[str, Any]]:
    labels = store.relation_labels()
    found: list[dict[str, Any]] = []
    for relation in np.unique(ranking.answers):
        own = ranking.answers == relation
        metrics: Metrics = ranking_metrics(
            Ranking(ranking.queries[own], ranking.answers[own], ranking.greater[own], ranking.equal[own])
        )
        found.append({"relation": labels[int(relation)].as_py(), **metrics})
    return found
