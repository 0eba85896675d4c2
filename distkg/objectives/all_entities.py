"""Objectives over all entities of the sharded table, exact on any number of ranks.

Every rank scores the queries of all ranks against its own rows only, block by block. Ranks exchange one float per
query, log Σ exp over their rows. No B×N tensor is kept: blocks of scores stay within a memory bound, and are
recomputed if they would not fit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.config import ObjectiveConfig
from distkg.kernels.gather_scatter import add_rows
from distkg.kernels.jit import on_cpu
from distkg.kernels.scores.log_sum_exp import BLOCK_ROWS, blocks
from distkg.kernels.scores.similarity import Similarity
from distkg.registry import Registry
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards

ALL_ENTITIES: Registry[type[AllEntitiesObjective]] = Registry("objective over all entities", "distkg.objectives")

_BLOCK_QUERIES = 256
_ROWS_ON_DEVICE = 1 << 16


@dataclass(frozen=True)
class Answers:
    """Answers of a batch among this rank's rows, sorted by query, without duplicates.

    Attributes:
        query: int64 [a], index of the query in the batch of all ranks.
        row: int64 [a], local row number of the answer.
        count: float32 [B], number of answers of each query over all ranks; 0 for padding.
    """

    query: Tensor
    row: Tensor
    count: Tensor

    @classmethod
    def none(cls, count: Tensor) -> Answers:
        """Build without answers: one_vs_all is then the mean of log Σ exp, weighted by ``count`` float32 [B]."""
        nothing = torch.empty(0, dtype=torch.int64, device=count.device)
        return cls(nothing, nothing, count)

    def within(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Select the answers of the queries low … high - 1, with query indices relative to low."""
        first, last = torch.searchsorted(self.query, torch.tensor([low, high], device=self.query.device)).tolist()
        return self.query[first:last] - low, self.row[first:last]


@dataclass(frozen=True)
class Reduced:
    """Loss and gradients of a batch on this rank.

    Attributes:
        loss: float32 scalar; the sum over ranks is the batch's loss.
        query: float32 [B, Q], contribution of this rank to the gradient of every query.
        candidates: float32 [rows of this rank, C], gradient of this rank's rows.
    """

    loss: Tensor
    query: Tensor
    candidates: Tensor


class AllEntitiesObjective(ABC):
    """Base class of objectives over all queries and all entities."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.label_smoothing = config.label_smoothing
        self.memory = config.score_memory_mb << 20

    @abstractmethod
    def __call__(
        self, similarity: Similarity, query: Tensor, candidates: Tensor, answers: Answers, ranks: Ranks, entities: int
    ) -> Reduced:
        """Compute loss and gradients of a batch; collective.

        Args:
            similarity: similarity of queries and candidates.
            query: float32 [B, Q], equal on all ranks.
            candidates: float32 [rows of this rank, C].
            answers: answers among this rank's rows.
            ranks: ranks of the reduction.
            entities: number of entities over all ranks.
        """


@ALL_ENTITIES.register("one_vs_all")
class OneVsAll(AllEntitiesObjective):
    """Cross entropy of each answer among all entities (Lacroix et al. 2018, eq. 7), averaged over answers.

    A query with n answers has the loss n · log Σ exp − Σ s⁺, the sum over n queries with one answer each.
    """

    def __call__(
        self, similarity: Similarity, query: Tensor, candidates: Tensor, answers: Answers, ranks: Ranks, entities: int
    ) -> Reduced:
        total = answers.count.sum().clamp_min(1)  # of a step without queries, the loss is 0
        loss = query.new_zeros(())
        grad_query, grad_candidates = torch.zeros_like(query), torch.zeros_like(candidates)
        step, keep = self._queries_at_once(Shards(entities, ranks.size).per_rank)
        for low in range(0, len(query), step):
            chunk, count = query[low : low + step], answers.count[low : low + step]
            over_rows = similarity.log_sum_exp(chunk, candidates, keep=keep)
            log_sum = _over_all_ranks(over_rows.first_pass(), ranks)
            if ranks.first:
                loss += (count * log_sum).sum()
            over_rows.second_pass(log_sum, count / total, grad_query[low : low + step], grad_candidates)
        loss -= _subtract_answers(similarity, 1 / total, query, candidates, answers, grad_query, grad_candidates)
        return Reduced(loss / total, grad_query, grad_candidates)

    def _queries_at_once(self, rows: int) -> tuple[int, bool]:
        """Return the number of queries per block of both passes, and whether their scores fit into memory.

        ``rows`` is the number of rows of the largest rank: ranks reduce together, so all must use the same blocks.
        """
        fitting = self.memory // (4 * max(rows, 1))
        if fitting >= _BLOCK_QUERIES // 4:
            return min(fitting, _BLOCK_QUERIES), True
        return _BLOCK_QUERIES, False


def _over_all_ranks(log_sum: Tensor, ranks: Ranks) -> Tensor:
    """Reduce log Σ exp over the rows of all ranks, in one exchange of one float per query and rank."""
    return ranks.all_gather(log_sum[None]).logsumexp(0)


def _subtract_answers(
    similarity: Similarity,
    share: Tensor,
    query: Tensor,
    candidates: Tensor,
    answers: Answers,
    grad_query: Tensor,
    grad_candidates: Tensor,
) -> Tensor:
    """Subtract the gradient of share · Σ s⁺ from the last two arguments, and return Σ s⁺, a scalar."""
    if not len(answers.row):
        return query.new_zeros(())
    queries, answer = query[answers.query].requires_grad_(), candidates[answers.row].requires_grad_()
    positive = similarity.pairs(queries, answer).sum()
    (positive * -share).backward()
    if queries.grad is not None and answer.grad is not None:
        add_rows(grad_query, answers.query, queries.grad)
        add_rows(grad_candidates, answers.row, answer.grad)
    return positive.detach()


@ALL_ENTITIES.register("k_vs_all")
class KVsAll(AllEntitiesObjective):
    """Binary cross entropy over all entities, with all answers of a query as positives (Dettmers et al. 2018, eq. 2).

    Averaged over queries and entities. With ε > 0, labels y are smoothed to (1 − ε) y + 1 / N, as in ConvE's code.
    """

    def __call__(
        self, similarity: Similarity, query: Tensor, candidates: Tensor, answers: Answers, ranks: Ranks, entities: int
    ) -> Reduced:
        asked_at_all = (answers.count > 0).float()
        scale = 1 / (asked_at_all.sum().clamp_min(1) * entities)
        floor = 1 / entities if self.label_smoothing else 0.0
        loss = query.new_zeros(())
        grad_query, grad_candidates = torch.zeros_like(query), torch.zeros_like(candidates)
        for start in range(0, len(query), _BLOCK_QUERIES):
            chunk, live = query[start : start + _BLOCK_QUERIES], asked_at_all[start : start + _BLOCK_QUERIES, None]
            part = answers.within(start, start + _BLOCK_QUERIES) if on_cpu(chunk) else None
            for low, high in blocks(len(candidates), BLOCK_ROWS if on_cpu(chunk) else _ROWS_ON_DEVICE):
                rows = candidates[low:high]
                scores = similarity.scores(chunk, rows)
                labels = _labels(answers, start, low, scores) if part is None else _places(*part, low, high)
                positive = scores[labels] if isinstance(labels, tuple) else scores * labels
                loss += ((F.softplus(scores) - floor * scores) * live).sum()
                loss -= (1 - self.label_smoothing) * positive.sum()
                grad = torch.sigmoid(scores).sub_(floor)
                if isinstance(labels, tuple):
                    grad[labels] -= 1 - self.label_smoothing
                else:
                    grad.sub_(labels, alpha=1 - self.label_smoothing)
                to_query, to_rows = similarity.gradients(grad.mul_(live * scale), scores, chunk, rows)
                grad_query[start : start + _BLOCK_QUERIES] += to_query
                grad_candidates[low:high] += to_rows
        return Reduced(loss * scale, grad_query, grad_candidates)


def _places(asked: Tensor, row: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    inside = (row >= low) & (row < high)
    return asked[inside], row[inside] - low


def _labels(answers: Answers, start: int, low: int, scores: Tensor) -> Tensor:
    """Return 1 for the answers among scores [b, n] of queries from ``start`` on and rows from ``low`` on, else 0.

    A device computes it without a choice of answers, whose number the host would wait for.
    """
    query, row = answers.query - start, answers.row - low
    inside = (query >= 0) & (query < len(scores)) & (row >= 0) & (row < scores.shape[1])
    place = query.clamp(0, len(scores) - 1), row.clamp(0, scores.shape[1] - 1)
    return torch.zeros_like(scores).index_put_(place, inside.to(scores.dtype), accumulate=True)
