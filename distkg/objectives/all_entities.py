"""Objectives over all entities of the sharded table, exact on any number of ranks.

Every rank sees the queries of all ranks and scores them against its own rows only, block by block. What a query
needs to know of another rank's rows is one float, their log Σ exp. No B×N tensor is kept: blocks of scores live
within a memory bound, and are computed again where they would not fit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.config import ObjectiveConfig
from distkg.kernels.gather_scatter import add_rows
from distkg.kernels.scores.log_sum_exp import blocks
from distkg.kernels.scores.similarity import Similarity
from distkg.registry import Registry
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards

ALL_ENTITIES: Registry[type[AllEntitiesObjective]] = Registry("objective over all entities", "distkg.objectives")

_BLOCK_QUERIES = 256


@dataclass(frozen=True)
class Answers:
    """The answers of a batch that this rank owns, sorted by query, each named once.

    Attributes:
        query: int64 [a], place of the query in the batch of all ranks.
        row: int64 [a], local row number of the answer.
        count: float32 [B], answers of each query over all ranks; 0 for a query that only fills the batch up.
    """

    query: Tensor
    row: Tensor
    count: Tensor

    @classmethod
    def none(cls, count: Tensor) -> Answers:
        """No answers: what remains of one_vs_all is the mean of log Σ exp, weighted by ``count`` float32 [B]."""
        nothing = torch.empty(0, dtype=torch.int64, device=count.device)
        return cls(nothing, nothing, count)

    def within(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Answers of the queries low … high-1, their queries counted from low."""
        first, last = torch.searchsorted(self.query, torch.tensor([low, high], device=self.query.device)).tolist()
        return self.query[first:last] - low, self.row[first:last]


@dataclass(frozen=True)
class Reduced:
    """What an objective says of a batch on this rank.

    Attributes:
        loss: float32 scalar, this rank's share: the sum over ranks is the batch's loss.
        query: float32 [B, Q], this rank's share of the gradient of every query.
        candidates: float32 [rows of this rank, C], the gradient of this rank's rows.
    """

    loss: Tensor
    query: Tensor
    candidates: Tensor


class AllEntitiesObjective(ABC):
    """Loss and gradients of all queries against all entities."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.label_smoothing = config.label_smoothing
        self.memory = config.score_memory_mb << 20

    @abstractmethod
    def __call__(
        self, similarity: Similarity, query: Tensor, candidates: Tensor, answers: Answers, ranks: Ranks, entities: int
    ) -> Reduced:
        """Reduce a batch; collective.

        Args:
            similarity: compares queries with candidates.
            query: float32 [B, Q], the same on all ranks.
            candidates: float32 [rows of this rank, C].
            answers: those that this rank owns.
            ranks: whom to reduce with.
            entities: number of entities over all ranks.
        """


@ALL_ENTITIES.register("one_vs_all")
class OneVsAll(AllEntitiesObjective):
    """Cross entropy of each answer among all entities (Lacroix et al. 2018, eq. 7), averaged over answers.

    A query asked once with n answers costs n · log Σ exp − Σ s⁺: the same sum as asked n times with one.
    """

    def __call__(
        self, similarity: Similarity, query: Tensor, candidates: Tensor, answers: Answers, ranks: Ranks, entities: int
    ) -> Reduced:
        total = answers.count.sum()
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
        """How many queries to take through both passes together, and whether their scores fit the memory.

        ``rows`` are those of the fullest rank: the ranks reduce together, so they must all cut the batch alike.
        """
        fitting = self.memory // (4 * max(rows, 1))
        if fitting >= _BLOCK_QUERIES // 4:
            return min(fitting, _BLOCK_QUERIES), True
        return _BLOCK_QUERIES, False


def _over_all_ranks(log_sum: Tensor, ranks: Ranks) -> Tensor:
    """log Σ exp over the rows of all ranks from that of each: one float per query and rank crosses, in one exchange."""
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
    """Subtract the gradient of share · Σ s⁺ from the last two arguments; gives Σ s⁺, a scalar."""
    if not len(answers.row):
        return query.new_zeros(())
    asked, answer = query[answers.query].requires_grad_(), candidates[answers.row].requires_grad_()
    positive = similarity.pairs(asked, answer).sum()
    (positive * -share).backward()
    if asked.grad is not None and answer.grad is not None:
        add_rows(grad_query, answers.query, asked.grad)
        add_rows(grad_candidates, answers.row, answer.grad)
    return positive.detach()


@ALL_ENTITIES.register("k_vs_all")
class KVsAll(AllEntitiesObjective):
    """Binary cross entropy over all entities, all answers of a query positive (Dettmers et al. 2018, eq. 2).

    Averaged over queries and entities. Labels y are smoothed to (1 − ε) y + 1 / N where ε > 0, as in ConvE's code.
    """

    def __call__(
        self, similarity: Similarity, query: Tensor, candidates: Tensor, answers: Answers, ranks: Ranks, entities: int
    ) -> Reduced:
        asked_at_all = (answers.count > 0).float()
        scale = 1 / (asked_at_all.sum() * entities)
        floor = 1 / entities if self.label_smoothing else 0.0
        loss = query.new_zeros(())
        grad_query, grad_candidates = torch.zeros_like(query), torch.zeros_like(candidates)
        for start in range(0, len(query), _BLOCK_QUERIES):
            chunk, live = query[start : start + _BLOCK_QUERIES], asked_at_all[start : start + _BLOCK_QUERIES, None]
            asked, row = answers.within(start, start + _BLOCK_QUERIES)
            for low, high in blocks(len(candidates)):
                rows = candidates[low:high]
                scores = similarity.scores(chunk, rows)
                place = _places(asked, row, low, high)
                positive = scores[place]
                loss += ((F.softplus(scores) - floor * scores) * live).sum()
                loss -= (1 - self.label_smoothing) * positive.sum()
                grad = torch.sigmoid(scores).sub_(floor)
                grad[place] -= 1 - self.label_smoothing
                to_query, to_rows = similarity.gradients(grad.mul_(live * scale), scores, chunk, rows)
                grad_query[start : start + _BLOCK_QUERIES] += to_query
                grad_candidates[low:high] += to_rows
        return Reduced(loss * scale, grad_query, grad_candidates)


def _places(asked: Tensor, row: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    inside = (row >= low) & (row < high)
    return asked[inside], row[inside] - low
