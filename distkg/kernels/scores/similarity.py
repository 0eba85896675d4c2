"""Similarities of query vectors and candidate vectors: higher is better.

A scorer has one. The same object is used for training (with gradients), objectives over all entities, ranking and
prediction. There are two families: functions of the inner product and the two squared norms, computed by matrix
multiplication, and distances computed pair by pair. Neither writes a tensor of size B×N×D.

Shapes: queries [B, Q], candidates [N, C]; Q = C unless a similarity documents otherwise. All float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.gather_scatter import squared_norms, take_rows
from distkg.kernels.jit import on_cpu
from distkg.kernels.products import product
from distkg.kernels.scores import pairwise
from distkg.kernels.scores.activations import Double
from distkg.kernels.scores.distance_log_sum_exp import log_sum_exp_of_distances
from distkg.kernels.scores.log_sum_exp import LogSumExp, SoftmaxLogSumExp

_CHUNK_BYTES = 64 << 20


class Similarity(ABC):
    """Base class of similarities of queries and candidates.

    Attributes:
        name: name in exports.
        slopes_need_scores: False if ``gradients`` does not use the scores.
    """

    name: str
    slopes_need_scores = False

    @abstractmethod
    def pairs(self, query: Tensor, candidate: Tensor) -> Tensor:
        """Score row by row: [B, Q], [B, C] -> [B]; differentiable."""

    @abstractmethod
    def scores(self, query: Tensor, candidates: Tensor) -> Tensor:
        """Score every query with every candidate: -> [B, N]; no autograd."""

    @abstractmethod
    def gradients(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients [B, Q] and [N, C] of Σ grad·scores, given ``scores`` from ``scores()``."""

    def weighted_gradients(
        self, grad: Tensor, weight: Tensor, scores: Tensor, query: Tensor, candidates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of Σ_i weight_i Σ_k grad_ik·scores_ik, weight [B]; ``grad`` may be overwritten."""
        return self.gradients(grad.mul_(weight[:, None]), scores, query, candidates)

    @abstractmethod
    def indexed(self, query: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        """Score query i with rows[index[i, k]]: [B, Q], [U, C], int64 [B, K] -> [B, K]; differentiable."""

    def log_sum_exp(self, query: Tensor, candidates: Tensor, *, keep: bool) -> LogSumExp:
        """Return log Σ exp of each query's scores; ``keep`` B×N floats between its two passes, or compute twice."""
        return SoftmaxLogSumExp(self, query, candidates, keep=keep)

    def block(self, query: Tensor, candidates: Tensor) -> Tensor:
        """Score every query with every candidate: -> [B, N]; differentiable."""
        scores: Tensor = _Block.apply(query, candidates, self)
        return scores


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, candidates: Tensor, similarity: Similarity) -> Tensor:  # type: ignore[no-untyped-def]
        scores = similarity.scores(query, candidates)
        ctx.save_for_backward(query, candidates, scores)
        ctx.similarity = similarity
        return scores

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        query, candidates, scores = ctx.saved_tensors
        return *ctx.similarity.gradients(grad.contiguous(), scores, query, candidates), None


@dataclass(frozen=True)
class PairwiseKernel:
    """Pairwise score: compiled for CPU, and a plain torch reference, in chunks, for other devices."""

    forward: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]
    backward: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]
    reference: Callable[[Tensor, Tensor], Tensor]

    def scores(self, query: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        """Score query i with rows[index[i, k]] (rows[index[0, k]] if index has one row): [B, K]."""
        out = query.new_empty(query.shape[0], index.shape[1])
        if on_cpu(query, rows, index):
            self.forward(query.numpy(), rows.numpy(), index.numpy(), out.numpy())
            return out
        for low, high in self._chunks(query, index):
            out[:, low:high] = self.reference(query[:, None], rows[index[:, low:high]])
        return out

    def gradients(self, grad: Tensor, query: Tensor, rows: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of Σ grad·scores: [B, Q] and [U, C]."""
        grad_query, grad_rows = torch.zeros_like(query), torch.zeros_like(rows)
        if on_cpu(grad, query, rows, index):
            arrays = [tensor.numpy() for tensor in (grad, query, rows, index, grad_query, grad_rows)]
            self.backward(*arrays)
            return grad_query, grad_rows
        for low, high in self._chunks(query, index):
            part = index[:, low:high]
            with torch.enable_grad():
                q, c = query.detach().requires_grad_(), rows[part].detach().requires_grad_()
                value = self.reference(q[:, None], c)
            to_query, to_rows = torch.autograd.grad(value, (q, c), grad[:, low:high])
            grad_query += to_query
            grad_rows.index_add_(0, part.flatten(), to_rows.flatten(0, 1))
        return grad_query, grad_rows

    @staticmethod
    def _chunks(query: Tensor, index: Tensor) -> list[tuple[int, int]]:
        step = max(1, _CHUNK_BYTES // (4 * query.numel() + 1))
        total = index.shape[1]
        return [(low, min(low + step, total)) for low in range(0, total, step)]


class _Indexed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, rows: Tensor, index: Tensor, kernel: PairwiseKernel) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(query, rows, index)
        ctx.kernel = kernel
        return kernel.scores(query.detach(), rows.detach(), index)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        query, rows, index = ctx.saved_tensors
        return *ctx.kernel.gradients(grad.contiguous(), query.detach(), rows.detach(), index), None, None


class ProductSimilarity(Similarity):
    """Base class of similarities that are functions of ``p = q·c``, ``|q|²`` and ``|c|²``."""

    @abstractmethod
    def combine(self, inner: Tensor, query_norm: Tensor, candidate_norm: Tensor) -> Tensor:
        """Compute scores from inner products and squared norms of broadcastable shapes; differentiable."""

    @abstractmethod
    def slopes(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``grad`` [B, N] times ∂score/∂p [B, N], and summed ∂score/∂|q|² [B] and ∂score/∂|c|² [N]."""

    def pairs(self, query: Tensor, candidate: Tensor) -> Tensor:
        return self.combine((query * candidate).sum(-1), query.square().sum(-1), candidate.square().sum(-1))

    def scores(self, query: Tensor, candidates: Tensor) -> Tensor:
        return self.combine(product(query, candidates), squared_norms(query)[:, None], squared_norms(candidates))

    def gradients(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        to_inner, to_query, to_candidates = self.slopes(grad, scores, query, candidates)
        grad_query = product(to_inner, candidates.T).addcmul_(query, to_query[:, None], value=2)
        grad_candidates = product(to_inner.T, query.T).addcmul_(candidates, to_candidates[:, None], value=2)
        return grad_query, grad_candidates

    def indexed(self, query: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        inner = indexed_products(query, rows, index)
        norms = take_rows(rows.square().sum(-1, keepdim=True), index.flatten()).view(index.shape)
        return self.combine(inner, query.square().sum(-1, keepdim=True), norms)


class DotSimilarity(ProductSimilarity):
    """Inner product ⟨q, c⟩."""

    name = "dot"

    def pairs(self, query: Tensor, candidate: Tensor) -> Tensor:
        return torch.linalg.vecdot(query, candidate)

    def scores(self, query: Tensor, candidates: Tensor) -> Tensor:
        return product(query, candidates)

    def gradients(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        return product(grad, candidates.T), product(grad.T, query.T)

    def weighted_gradients(
        self, grad: Tensor, weight: Tensor, scores: Tensor, query: Tensor, candidates: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Weighting the queries instead saves a pass over the B×N matrix.
        weight = weight[:, None]
        return product(grad, candidates.T).mul_(weight), product(grad.T, (query * weight).T)

    def indexed(self, query: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        return indexed_products(query, rows, index)

    def combine(self, inner: Tensor, query_norm: Tensor, candidate_norm: Tensor) -> Tensor:
        return inner

    def slopes(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return grad, grad.new_zeros(grad.shape[0]), grad.new_zeros(grad.shape[1])


class SquaredL2Similarity(ProductSimilarity):
    """Negative squared Euclidean distance -|q - c|²."""

    name = "squared_l2"

    def combine(self, inner: Tensor, query_norm: Tensor, candidate_norm: Tensor) -> Tensor:
        return 2 * inner - query_norm - candidate_norm

    def slopes(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return 2 * grad, -grad.sum(1), -grad.sum(0)

    def log_sum_exp(self, query: Tensor, candidates: Tensor, *, keep: bool) -> LogSumExp:
        halves = query.new_full((len(query),), 0.5)  # half of 2x is the plain distance
        compiled = log_sum_exp_of_distances(Double(), query, halves, candidates, keep=keep)
        return compiled or super().log_sum_exp(query, candidates, keep=keep)


class L2Similarity(ProductSimilarity):
    """Negative Euclidean distance -|q - c|, at least ``FLOOR``, below which float32 cancellation leaves no digits."""

    name = "l2"
    slopes_need_scores = True
    FLOOR = 1e-6

    def combine(self, inner: Tensor, query_norm: Tensor, candidate_norm: Tensor) -> Tensor:
        return -torch.sqrt((query_norm + candidate_norm - 2 * inner).clamp_min(self.FLOOR**2))

    def slopes(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half = torch.where(scores < -self.FLOOR, grad / (2 * scores), grad.new_zeros(()))
        return -2 * half, half.sum(1), half.sum(0)


class RotLSimilarity(ProductSimilarity):
    """RotL similarity -φ(α|q - c| / |1 - q·c|), φ(x) = x eˣ (HaLE, arXiv 2201.00565, eq. 16).

    Two guards keep scores and gradients finite: the denominator is at least ``SMALLEST_DENOMINATOR`` in magnitude, and
    φ is continued by its tangent above ``TANGENT_FROM``.
    """

    name = "rotl"
    SMALLEST_DENOMINATOR = 1e-2
    TANGENT_FROM = 10.0

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def combine(self, inner: Tensor, query_norm: Tensor, candidate_norm: Tensor) -> Tensor:
        distance = torch.sqrt((query_norm + candidate_norm - 2 * inner).clamp_min(L2Similarity.FLOOR**2))
        return -self._phi(self.alpha * distance / (1 - inner).abs().clamp_min(self.SMALLEST_DENOMINATOR))

    def _phi(self, x: Tensor) -> Tensor:
        bend = self.TANGENT_FROM
        low = x.clamp_max(bend)
        slope = float(np.exp(bend) * (1 + bend))
        # With x - low instead of the relu, rounding of slope - slope would add to the gradient below the bend.
        return low * torch.exp(low) + slope * torch.relu(x - bend)

    def slopes(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            inner = product(query, candidates).requires_grad_()
            query_norm = squared_norms(query)[:, None].requires_grad_()
            candidate_norm = squared_norms(candidates).requires_grad_()
            value = self.combine(inner, query_norm, candidate_norm)
        slopes = torch.autograd.grad(value, (inner, query_norm, candidate_norm), grad)
        return slopes[0], slopes[1].flatten(), slopes[2]


class PairwiseSimilarity(Similarity):
    """Similarity by a distance that is not a function of matrix products."""

    def __init__(self, name: str, kernel: PairwiseKernel) -> None:
        self.name = name
        self._kernel = kernel

    def pairs(self, query: Tensor, candidate: Tensor) -> Tensor:
        return self._kernel.reference(query, candidate)

    def scores(self, query: Tensor, candidates: Tensor) -> Tensor:
        return self._kernel.scores(query, candidates, _everyone(candidates))

    def gradients(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        return self._kernel.gradients(grad, query, candidates, _everyone(candidates))

    def indexed(self, query: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        scores: Tensor = _Indexed.apply(query, rows, index, self._kernel)
        return scores


def _everyone(candidates: Tensor) -> Tensor:
    return torch.arange(candidates.shape[0], device=candidates.device)[None]


def indexed_products(query: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Compute ⟨query i, rows[index[i, k]]⟩: [B, D], [U, D], int64 [B, K] -> [B, K]; differentiable."""
    inner: Tensor = _Indexed.apply(query, rows, index, _DOT_KERNEL)
    return inner


_DOT_KERNEL = PairwiseKernel(pairwise.dot_scores, pairwise.dot_gradients, pairwise.reference_dot)

DOT = DotSimilarity()
SQUARED_L2 = SquaredL2Similarity()
L2 = L2Similarity()
L1 = PairwiseSimilarity("l1", PairwiseKernel(pairwise.l1_scores, pairwise.l1_gradients, pairwise.reference_l1))
SCALED_L1 = PairwiseSimilarity(
    "scaled_l1",
    PairwiseKernel(pairwise.scaled_l1_scores, pairwise.scaled_l1_gradients, pairwise.reference_scaled_l1),
)
MODULUS = PairwiseSimilarity(
    "modulus", PairwiseKernel(pairwise.modulus_scores, pairwise.modulus_gradients, pairwise.reference_modulus)
)
