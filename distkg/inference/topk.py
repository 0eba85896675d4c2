"""The best answers to queries over sharded entities, in an order that does not depend on how they are cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distkg.data.known import KnownAnswers
from distkg.kernels.counting import hide_cells, known_cells
from distkg.training.blocks import Blocks, evaluating, query_vectors, refuse_broken
from distkg.training.model import Model

_LOWEST = torch.iinfo(torch.int64).min
_ID_BITS = 32
_LAST_ID = (1 << 31) - 1


@dataclass(frozen=True)
class TopAnswers:
    """Best answers first; among equal scores the lower entity id first.

    Attributes:
        entities: int32 [q, k]; -1 where a query has fewer than k answers left.
        scores: float32 [q, k]; -inf there.
    """

    entities: np.ndarray
    scores: np.ndarray


def top_answers(
    model: Model,
    queries: np.ndarray,
    top: int,
    hidden: KnownAnswers | None = None,
    *,
    batch_size: int = 256,
    memory_mb: int = 256,
) -> TopAnswers:
    """The ``top`` best entities for each query int [q, 2] (anchor, relation in [0, 2R)). Collective.

    Args:
        hidden: answers left out; all ranks pass the same.
        batch_size: queries scored together.
        memory_mb: MiB per rank for query vectors and a block of scores.

    Raises:
        ScoreError: a score is NaN or infinite; raised on all ranks.
    """
    if top < 1:
        raise ValueError(f"top is {top}; ask for 1 answer or more")
    top = min(top, model.entities.shards.rows)
    blocks = Blocks(model, batch_size, memory_mb << 20)
    parts = [torch.empty(0, top, dtype=torch.int64)]
    with evaluating(model):
        for low in range(0, len(queries), blocks.round_size):
            parts.append(_top_round(blocks, queries[low : low + blocks.round_size], top, hidden))
    keys = torch.cat(parts)
    found = keys != _LOWEST
    entities = torch.where(found, _LAST_ID - keys.bitwise_and((1 << _ID_BITS) - 1), -1)
    scores = torch.where(found, _score_of(keys), -torch.inf)
    return TopAnswers(entities.int().numpy(), scores.numpy())


def _top_round(blocks: Blocks, queries: np.ndarray, top: int, hidden: KnownAnswers | None) -> Tensor:
    """Sort keys of the best answers over all ranks: int64 [q, top], on CPU."""
    vectors = query_vectors(blocks.model, queries, blocks.batch_size)
    keys = torch.full((len(queries), top), _LOWEST, device=vectors.device)
    broken = torch.zeros(len(queries), dtype=torch.int64, device=vectors.device)
    for low, candidates in blocks.candidates():
        for first in range(0, len(queries), blocks.batch_size):
            rows = slice(first, first + blocks.batch_size)
            scores = blocks.model.scorer.similarity.scores(vectors[rows], candidates)
            broken[rows] += (~torch.isfinite(scores)).sum(1)
            if hidden is not None:
                starts, ends = hidden.rows(queries[rows, 0], queries[rows, 1])
                hide_cells(scores, known_cells(hidden.answers, starts, ends, low, len(candidates)))
            keys[rows] = _best(torch.cat([keys[rows], _sort_keys(scores, low)], 1), top)
    ranks = blocks.model.ranks
    ranks.all_reduce(broken)
    refuse_broken(queries, broken.cpu().numpy(), blocks.model.num_relations)
    everyones = ranks.all_gather(keys).view(ranks.size, len(queries), top).transpose(0, 1)
    return _best(everyones.reshape(len(queries), -1), top).cpu()


def _best(keys: Tensor, top: int) -> Tensor:
    return keys.topk(top, dim=1).values


def _sort_keys(scores: Tensor, low: int) -> Tensor:
    """Scores float32 [b, n] of entities ``low …`` as int64 that sort by score, then by lower id."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    ids = torch.arange(low, low + scores.shape[1], device=scores.device)
    keys = (ordered << _ID_BITS) + (_LAST_ID - ids)
    return keys.masked_fill_(scores == -torch.inf, _LOWEST)


def _score_of(keys: Tensor) -> Tensor:
    ordered = (keys >> _ID_BITS).int()
    return torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
