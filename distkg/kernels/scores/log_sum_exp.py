"""log Σ_k exp score(query, candidate k) and its gradients, in two passes over blocks of candidates.

Between the passes, ranks with different candidates reduce the sum. No B×N matrix is needed: with ``keep`` the results
of the first pass for each block are kept for the second, otherwise the second computes them again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

BLOCK_ROWS = 1024  # with 256 queries, a block of scores stays in a core's own cache


class LogSumExp(ABC):
    """Base class: log Σ exp of the scores of queries [B, Q] and candidates [N, C]."""

    @abstractmethod
    def first_pass(self) -> Tensor:
        """Return log Σ exp over these candidates, float32 [B]; the lowest finite number if there are none."""

    @abstractmethod
    def second_pass(self, log_sum: Tensor, weight: Tensor, grad_query: Tensor, grad_candidates: Tensor) -> None:
        """Add the contribution of these candidates to the gradient of Σ_i weight_i · log_sum_i.

        Args:
            log_sum: float32 [B], log Σ exp over the candidates of all ranks.
            weight: float32 [B].
            grad_query, grad_candidates: [B, Q] and [N, C], added to in place.
        """


class Scores(Protocol):
    """Similarity as needed here (see ``similarity.Similarity``)."""

    slopes_need_scores: bool

    def scores(self, query: Tensor, candidates: Tensor) -> Tensor: ...

    def weighted_gradients(
        self, grad: Tensor, weight: Tensor, scores: Tensor, query: Tensor, candidates: Tensor
    ) -> tuple[Tensor, Tensor]: ...


class SoftmaxLogSumExp(LogSumExp):
    """log Σ exp for any similarity: the softmax of a block, one fused operation, is rescaled by its log Σ exp."""

    def __init__(self, similarity: Scores, query: Tensor, candidates: Tensor, *, keep: bool) -> None:
        self._similarity, self._query, self._candidates = similarity, query, candidates
        self._keep = keep and not similarity.slopes_need_scores
        self._blocks = list(blocks(len(candidates)))
        self._kept: list[Tensor] = []
        self._log_sums = query.new_full((len(self._blocks), len(query)), -torch.inf)

    def first_pass(self) -> Tensor:
        for i, (low, high) in enumerate(self._blocks):
            scores = self._similarity.scores(self._query, self._candidates[low:high])
            peak = scores.amax(1)
            shares = torch.softmax(scores, 1, out=scores)  # row by row, so that it may overwrite what it reads
            self._log_sums[i] = peak - shares.amax(1).log()
            if self._keep:
                self._kept.append(shares)
        if not self._blocks:
            return nothing_summed(self._query)
        return self._log_sums.logsumexp(0)

    def second_pass(self, log_sum: Tensor, weight: Tensor, grad_query: Tensor, grad_candidates: Tensor) -> None:
        for i, (low, high) in enumerate(self._blocks):
            rows = self._candidates[low:high]
            scores = self._query.new_empty(0) if self._keep else self._similarity.scores(self._query, rows)
            shares = self._kept[i] if self._keep else torch.softmax(scores, 1)
            factor = weight * torch.exp(self._log_sums[i] - log_sum)
            to_query, to_rows = self._similarity.weighted_gradients(shares, factor, scores, self._query, rows)
            grad_query += to_query
            grad_candidates[low:high] += to_rows


def nothing_summed(like: Tensor) -> Tensor:
    """Return log Σ exp over no candidates for each row of ``like``: the lowest finite number, so differences exist."""
    return like.new_full((len(like),), torch.finfo(torch.float32).min)


def blocks(rows: int, size: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges [low, high) of 0 … rows - 1 of at most ``size``."""
    size = size or BLOCK_ROWS
    for low in range(0, rows, size):
        yield low, min(low + size, rows)
