"""Top-k answers to queries over sharded entities, in an order that does not depend on the sharding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from distkg.data.store.known_answers import KnownAnswers
from distkg.embedding.model import Model
from distkg.evaluation.score_blocks import Blocks, evaluating, query_vectors, refuse_broken
from distkg.kernels.counting import hide_cells, known_cells
from distkg.kernels.select_topk import Best, best_of, keep_best
from distkg.sharding.ranks import Ranks


@dataclass(frozen=True)
class TopAnswers:
    """Best answers first; among equal scores the lower entity id first.

    Attributes:
        entities: int32 [q, k]; -1 where a query has fewer than k answers.
        scores: float32 [q, k]; -inf there.
    """

    entities: np.ndarray
    scores: np.ndarray


TopK = Callable[[np.ndarray, int, KnownAnswers | None], TopAnswers]
"""Queries int [q, 2], how many answers, and answers to leave out → the best answers."""


def top_answers(
    model: Model,
    queries: np.ndarray,
    top: int,
    hidden: KnownAnswers | None = None,
    *,
    batch_size: int = 256,
    memory_mb: int = 256,
) -> TopAnswers:
    """Return the ``top`` best entities for each query int [q, 2] (anchor, relation in [0, 2R)). Collective.

    Args:
        hidden: answers to exclude; the same on all ranks.
        batch_size: queries scored together.
        memory_mb: MiB per rank for query vectors and a block of scores.

    Raises:
        ValueError: ``top`` is below 1.
        ScoreError: a score is NaN or infinite; raised on all ranks.
    """
    if top < 1:
        raise ValueError(f"top is {top}; it must be at least 1")
    top = min(top, model.entities.shards.rows)
    blocks = Blocks(model, batch_size, memory_mb << 20)
    parts = [Best.none_yet(0, top, torch.device("cpu"))]
    with evaluating(model):
        for low in range(0, len(queries), blocks.round_size):
            parts.append(_top_round(blocks, queries[low : low + blocks.round_size], top, hidden))
    entities, scores = (torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("entities", "scores"))
    return TopAnswers(entities.numpy(), scores.numpy())


def _top_round(blocks: Blocks, queries: np.ndarray, top: int, hidden: KnownAnswers | None) -> Best:
    """Return the best answers over all ranks for one round of queries."""
    model, ranks = blocks.model, blocks.model.ranks
    vectors = query_vectors(model, queries, blocks.batch_size)
    best = Best.none_yet(len(queries), top, vectors.device)
    broken = torch.zeros(len(queries), dtype=torch.int64, device=vectors.device)
    for low, candidates in blocks.candidates():
        for first in range(0, len(queries), blocks.batch_size):
            rows = slice(first, first + blocks.batch_size)
            scores = model.scorer.similarity.scores(vectors[rows], candidates)
            broken[rows] += (~torch.isfinite(scores)).sum(1)
            if hidden is not None:
                starts, ends = hidden.rows(queries[rows, 0], queries[rows, 1])
                hide_cells(scores, known_cells(hidden.answers, starts, ends, low, len(candidates)))
            keep_best(scores, low, first, best)
    ranks.all_reduce(broken)
    refuse_broken(queries, broken.cpu().numpy(), model.num_relations)
    return _merge(ranks, best)


def _merge(ranks: Ranks, best: Best) -> Best:
    """Merge the best answers of all ranks."""
    queries, top = best.scores.shape
    scores, entities = (
        ranks.all_gather(part).view(ranks.size, queries, top).transpose(0, 1).reshape(queries, -1)
        for part in (best.scores, best.entities)
    )
    return best_of(scores, entities, top)
