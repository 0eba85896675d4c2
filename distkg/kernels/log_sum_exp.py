"""log Σ_k exp score(query, candidate k) and its gradients, in two passes over blocks of candidates.

Between the passes, ranks that hold different candidates agree on the whole sum. No B×N matrix is needed: with
``keep`` what the first pass found out about each block stays for the second, else the second works it out again.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.activations import Activation
from distkg.kernels.jit import kernel, on_cpu
from distkg.kernels.products import product
from distkg.kernels.rows import squared_norms
from distkg.kernels.weighing import WEIGHING

if TYPE_CHECKING:
    from distkg.kernels.similarity import Similarity

_BLOCK_ROWS = 1024  # with 256 queries, a block of scores stays in a core's own cache
_BLOCK_SCORES = 256 * 1024


class LogSumExp(ABC):
    """log Σ exp of the scores of queries [B, Q] with candidates [N, C]."""

    @abstractmethod
    def first_pass(self) -> Tensor:
        """log Σ exp over these candidates, float32 [B]; the lowest number where there are none."""

    @abstractmethod
    def second_pass(self, log_sum: Tensor, weight: Tensor, grad_query: Tensor, grad_candidates: Tensor) -> None:
        """Add the gradient of Σ_i weight_i · log_sum_i, as far as these candidates have a part in it.

        Args:
            log_sum: float32 [B], log Σ exp over the candidates of all ranks.
            weight: float32 [B].
            grad_query, grad_candidates: [B, Q] and [N, C], added to in place.
        """


class SoftmaxLogSumExp(LogSumExp):
    """For any similarity: a block's own softmax is one fused operation, put in proportion by its log Σ exp."""

    def __init__(self, similarity: Similarity, query: Tensor, candidates: Tensor, *, keep: bool) -> None:
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


class DistanceLogSumExp(LogSumExp):
    """For score = −h(scale · d²) on CPU: products from oneDNN, all between them in one compiled pass over a block.

    While h stays below ``_SAFE`` nothing can under- or overflow. Elsewhere exponents are counted from the smallest h
    that a query has met so far, and what was summed before is put in proportion whenever a smaller one appears.
    """

    _SAFE = 60.0

    def __init__(
        self, activation: Activation, vector: Tensor, scale: Tensor, candidates: Tensor, *, keep: bool
    ) -> None:
        """vector float32 [B, D], scale float32 [B], candidates float32 [N, D]; all contiguous."""
        self._activation, self._candidates = activation, candidates
        self._vector, self._scale, self._norm = vector, scale, squared_norms(vector)
        self._candidate_norm = squared_norms(candidates)
        self._weigh = WEIGHING[type(activation)]
        self._blocks = list(blocks(len(candidates), max(_BLOCK_ROWS, _BLOCK_SCORES // max(len(vector), 1))))
        self._keep = keep
        self._kept: list[tuple[Tensor, Tensor]] = []
        bounded = activation.largest <= self._SAFE
        self._shift = torch.full_like(scale, 0.0 if bounded else torch.inf)
        self._bounded = bounded

    def first_pass(self) -> Tensor:
        self._sums = self._scale.new_zeros(3, len(self._scale))
        self._pull = torch.zeros_like(self._vector)
        for low, high in self._blocks:
            block = product(self._vector, self._candidates[low:high])
            if not self._bounded:
                self._lower_shift(block, self._candidate_norm[low:high])
            self._weights(block, low, high, self._sums)
            self._pull += product(block, self._candidates[low:high].T)
            if self._keep:
                self._kept.append((block, self._shift))
        if not self._blocks:
            return nothing_summed(self._scale)
        return self._sums[0].log() - self._shift

    def second_pass(self, log_sum: Tensor, weight: Tensor, grad_query: Tensor, grad_candidates: Tensor) -> None:
        if not self._blocks:
            return
        dim = self._vector.shape[1]
        share = weight * torch.exp(-self._shift - log_sum)
        _, weights, weighted = self._sums
        push = (2 * share * self._scale)[:, None]
        grad_query[:, :dim] += push * (self._pull - weights[:, None] * self._vector)
        if grad_query.shape[1] > dim:
            grad_query[:, dim] -= share * weighted
        for i, (low, high) in enumerate(self._blocks):
            block, shift = self._kept[i] if self._keep else (self._again(low, high), self._shift)
            push = (2 * weight * torch.exp(-shift - log_sum) * self._scale)[:, None]
            # The last column sums the weights, so that one product gives both Σ w q and Σ w.
            summed = product(torch.cat((push * self._vector, push), dim=1).T, block.T)
            _add_pushed(grad_candidates[low:high].numpy(), summed.numpy(), self._candidates[low:high].numpy())

    def _again(self, low: int, high: int) -> Tensor:
        block = product(self._vector, self._candidates[low:high])
        self._weights(block, low, high, torch.zeros_like(self._sums))
        return block

    def _weights(self, block: Tensor, low: int, high: int, sums: Tensor) -> None:
        norm = self._candidate_norm[low:high]
        arrays = (tensor.numpy() for tensor in (block, self._norm, norm, self._scale, self._shift))
        limits = np.float32(self._activation.limit), np.float32(self._activation.steepness)
        self._weigh(*arrays, *limits, sums.numpy())

    def _lower_shift(self, block: Tensor, candidate_norm: Tensor) -> None:
        nearest = (torch.sub(candidate_norm, block, alpha=2).amin(1) + self._norm).clamp_min_(0)
        lower = torch.minimum(self._shift, self._activation(self._scale * nearest))
        proportion = torch.exp(lower - self._shift)
        self._sums *= proportion
        self._pull *= proportion[:, None]
        self._shift = lower


def log_sum_exp_of_distances(
    activation: Activation, vector: Tensor, scale: Tensor, candidates: Tensor, *, keep: bool
) -> LogSumExp | None:
    """For score = −h(scale · ‖vector − candidate‖²), the compiled form for this device, or None where there is none."""
    vector, scale, candidates = vector.contiguous(), scale.contiguous(), candidates.contiguous()
    if on_cpu(vector, scale, candidates):
        return DistanceLogSumExp(activation, vector, scale, candidates, keep=keep)
    if vector.is_cuda and importlib.util.find_spec("triton"):
        from distkg.kernels.log_sum_exp_triton import TritonLogSumExp

        return TritonLogSumExp(activation, vector, scale, candidates)
    return None


@kernel
def _add_pushed(grad: np.ndarray, summed: np.ndarray, candidates: np.ndarray) -> None:
    """Add Σ w q − c Σ w to grad [n, D], from both sums side by side and transposed, [D + 1, n]."""
    dim = grad.shape[1]
    for k in range(grad.shape[0]):
        weights = summed[dim, k]
        for j in range(dim):
            grad[k, j] += summed[j, k] - weights * candidates[k, j]


def nothing_summed(like: Tensor) -> Tensor:
    """log Σ exp over no candidates for each row of ``like``: as low as a number can be, so that differences exist."""
    return like.new_full((len(like),), torch.finfo(torch.float32).min)


def blocks(rows: int, size: int | None = None) -> Iterator[tuple[int, int]]:
    """Cut 0 … rows-1 into [low, high) of at most ``size``."""
    size = size or _BLOCK_ROWS
    for low in range(0, rows, size):
        yield low, min(low + size, rows)
