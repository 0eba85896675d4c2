"""Comparison of the answers of a batch with its negatives: the loss, and the gradients of queries and candidates.

On CPU it works without autograd, block by block: scores, loss and both gradients of a block of queries and their
negatives are computed while the block is in the core's cache, so no matrix of all queries and negatives is written or
read again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.embedding.batches import SampledBatch
from distkg.kernels.gather_scatter import add_rows, gather_rows, take_rows
from distkg.kernels.jit import on_cpu
from distkg.kernels.sampled.products import compare_with_products, sum_over_candidates
from distkg.kernels.scores.similarity import L2Similarity, ProductSimilarity, Similarity, compiled_score, row_order
from distkg.kernels.threads import for_each, for_each_part
from distkg.objectives import EXCLUDED, SampledObjective

_BLOCK_SCORES = 1 << 15  # scores of a block: with their gradients a quarter of a megabyte, half of a small second cache
_FEWEST = 32  # queries of a block: with fewer, products of matrices are slow
_FEWEST_ROWS = 256  # candidates of a thread: with fewer, it costs more than it saves


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Attributes:
        loss: float32 scalar, weighted sum over the queries.
        to_query: float32 [b, Q], its gradient by the queries.
        to_candidates: float32 [u, C], its gradient by the candidates.
    """

    loss: Tensor
    to_query: Tensor
    to_candidates: Tensor


def compare(
    similarity: Similarity,
    objective: SampledObjective,
    query: Tensor,
    candidates: Tensor,
    batch: SampledBatch,
    weight: float,
) -> Comparison:
    """Compare each query's answer with its negatives.

    Args:
        query: float32 [b, Q].
        candidates: float32 [u, C], candidate vectors of the batch's entities.
        weight: factor on the loss of each query.
    """
    if batch.sharing == 1:
        return _compare_independent(similarity, objective, query, candidates, batch, weight)
    if isinstance(similarity, ProductSimilarity) and not on_cpu(query, candidates):
        return _compare_together(similarity, objective, query, candidates, batch, weight)
    scoring = compiled_score(similarity)
    if scoring is not None and objective.compiled is not None and query.dtype == candidates.dtype == torch.float32:
        return _compare_compiled(scoring, objective, query, candidates, batch, weight)
    return _compare_blocks(similarity, objective, query, candidates, batch, weight)


def _compare_independent(
    similarity: Similarity,
    objective: SampledObjective,
    query: Tensor,
    candidates: Tensor,
    batch: SampledBatch,
    weight: float,
) -> Comparison:
    """Compare each query with negatives of its own."""
    answer = batch.answer[:, None]
    to_query, to_candidates = query.new_zeros(query.shape), candidates.new_zeros(candidates.shape)
    order = row_order(query, candidates, batch.negatives)
    negative = similarity.indexed_scores(query, candidates, batch.negatives, order)
    positive = similarity.indexed_scores(query, candidates, answer)
    losses, to_positive, to_negative = _loss(objective, positive, negative, batch.mask, weight)
    similarity.add_indexed_gradients(
        to_negative, negative, query, candidates, batch.negatives, to_query, to_candidates, order
    )
    similarity.add_indexed_gradients(to_positive, positive, query, candidates, answer, to_query, to_candidates)
    return Comparison(losses.sum(), to_query, to_candidates)


def _compare_compiled(
    scoring: int, objective: SampledObjective, query: Tensor, candidates: Tensor, batch: SampledBatch, weight: float
) -> Comparison:
    """Compare with shared negatives, group by group, in one compiled pass."""
    losses, pulls = query.new_empty(2, len(query))
    to_query, to_candidates = query.new_empty(query.shape), candidates.new_empty(candidates.shape)
    to_shared = candidates.new_empty(*batch.negatives.shape, candidates.shape[1])
    mask = query.new_empty(0, 0, dtype=torch.bool) if batch.mask is None else batch.mask
    arrays = [part.contiguous().numpy() for part in (query, candidates, batch.answer, batch.negatives, mask)]
    numbers = objective.margin, objective.temperature, weight, EXCLUDED, L2Similarity.FLOOR
    inputs: list[Any] = [scoring, objective.compiled, *arrays, batch.sharing, *map(np.float32, numbers)]
    outputs = [part.numpy() for part in (losses, pulls, to_query, to_shared)]
    drawn = arrays[3].reshape(-1), to_shared.flatten(0, 1).numpy()
    sums: list[Any] = [scoring, *arrays[:3], outputs[1], *drawn]

    def compare_groups(low: int, high: int) -> None:
        arguments = [*inputs, low, high, *outputs]
        compare_with_products(*arguments)

    def sum_rows(low: int, high: int) -> None:
        arguments = [*sums, low, high, to_candidates.numpy()]
        sum_over_candidates(*arguments)

    for_each_part(len(batch.negatives), compare_groups)
    for_each_part(len(candidates), sum_rows, _FEWEST_ROWS)
    return Comparison(losses.sum(), to_query, to_candidates)


def _compare_blocks(
    similarity: Similarity,
    objective: SampledObjective,
    query: Tensor,
    candidates: Tensor,
    batch: SampledBatch,
    weight: float,
) -> Comparison:
    """Compare with shared negatives, block by block of queries."""
    answer = batch.answer[:, None]
    positive = similarity.indexed_scores(query, candidates, answer)
    losses, to_positive = query.new_empty(len(query)), torch.empty_like(positive)
    to_query, to_candidates = query.new_empty(query.shape), candidates.new_zeros(candidates.shape)
    to_shared = candidates.new_empty(*batch.negatives.shape, candidates.shape[1])

    def compare_group(row: int) -> None:
        shared = gather_rows(candidates, batch.negatives[row])
        for index, block in enumerate(_blocks(batch, row)):
            part, negative = query[block], similarity.scores(query[block], shared)
            mask = None if batch.mask is None else batch.mask[block]
            losses[block], to_positive[block], to_negative = _loss(objective, positive[block], negative, mask, weight)
            to_query[block], to_drawn = similarity.gradients(to_negative, negative, part, shared)
            to_shared[row] = to_drawn if index == 0 else to_shared[row].add_(to_drawn)

    for_each([(row,) for row in range(len(batch.negatives))], compare_group)
    add_rows(to_candidates, batch.negatives.flatten(), to_shared.flatten(0, 1))
    similarity.add_indexed_gradients(to_positive, positive, query, candidates, answer, to_query, to_candidates)
    return Comparison(losses.sum(), to_query, to_candidates)


def _compare_together(
    similarity: ProductSimilarity,
    objective: SampledObjective,
    query: Tensor,
    candidates: Tensor,
    batch: SampledBatch,
    weight: float,
) -> Comparison:
    """Compare all queries of a batch at once: a device takes longer to be asked for a block than to compute it.

    By autograd; the scores of the batch are kept, queries × negatives.
    """
    (groups, count), queries = batch.negatives.shape, len(query)
    with torch.enable_grad():
        leaves = query.detach().requires_grad_(), candidates.detach().requires_grad_()
        padded = F.pad(leaves[0], (0, 0, 0, groups * batch.sharing - queries)).view(groups, batch.sharing, -1)
        shared = take_rows(leaves[1], batch.negatives.flatten()).view(groups, count, -1)
        negative = similarity.grouped(padded, shared).view(groups * batch.sharing, count)[:queries]
        if batch.mask is not None:
            negative = negative.masked_fill(batch.mask, EXCLUDED)
        positive = similarity.pairs(leaves[0], take_rows(leaves[1], batch.answer))
        loss = (objective(positive, negative) * weight).sum()
    return Comparison(loss.detach(), *torch.autograd.grad(loss, leaves))


def _loss(
    objective: SampledObjective, positive: Tensor, negative: Tensor, mask: Tensor | None, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss [b] of scores [b, 1] and [b, K], and its gradients by both."""
    if mask is not None:
        negative.masked_fill_(mask, EXCLUDED)
    losses, to_positive, to_negative = objective.with_gradients(positive[:, 0], negative, weight=weight)
    return losses, to_positive[:, None], to_negative


def _blocks(batch: SampledBatch, row: int) -> list[slice]:
    """Return the queries that share a row of negatives, in blocks."""
    count, low = batch.negatives.shape[1], row * batch.sharing
    high, step = min(low + batch.sharing, len(batch.anchor)), max(_FEWEST, _BLOCK_SCORES // max(count, 1))
    return [slice(at, min(at + step, high)) for at in range(low, high, step)]
