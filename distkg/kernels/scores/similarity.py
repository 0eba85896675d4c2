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
from distkg.kernels.given_gradient import with_gradient
from distkg.kernels.jit import on_cpu
from distkg.kernels.products import grouped_product, product
from distkg.kernels.sampled.products import DISTANCE, INNER, SQUARED
from distkg.kernels.scores import pairwise
from distkg.kernels.scores.activations import Double
from distkg.kernels.scores.distance_sums.distance_log_sum_exp import log_sum_exp_of_distances
from distkg.kernels.scores.log_sum_exp import LogSumExp, SoftmaxLogSumExp
from distkg.kernels.scores.root_distance import negative_distances, slopes_of_distances
from distkg.kernels.scores.row_order import RowOrder
from distkg.kernels.threads import for_each, for_each_part

_CHUNK_BYTES = 64 << 20
_FEWEST = 64  # queries of a part: with fewer, a thread costs more than it saves
_ORDERED = 4096  # entries of an index from which on their order pays


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
        """Score query i with rows[index[i, k]]: [B, Q], [U, C], int64 [B, K] -> [B, K]; differentiable.

        An index of one row is that of all queries.
        """

    def indexed_scores(self, query: Tensor, rows: Tensor, index: Tensor, order: RowOrder | None = None) -> Tensor:
        """Compute ``indexed`` without autograd; ``order`` is that of the index, if there is one."""
        with torch.no_grad():
            return self.indexed(query, rows, index)

    def add_indexed_gradients(
        self,
        grad: Tensor,
        scores: Tensor,
        query: Tensor,
        rows: Tensor,
        index: Tensor,
        to_query: Tensor,
        to_rows: Tensor,
        order: RowOrder | None = None,
    ) -> None:
        """Add the gradients of Σ grad·scores to ``to_query`` [B, Q] and ``to_rows`` [U, C], given the scores."""
        with torch.enable_grad():
            leaves = query.detach().requires_grad_(), rows.detach().requires_grad_()
            value = self.indexed(*leaves, index)
        gradients = torch.autograd.grad(with_gradient(value, grad), leaves)
        for total, gradient in zip((to_query, to_rows), gradients, strict=True):
            total += gradient

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


Kernel = Callable[..., None]


@dataclass(frozen=True)
class PairwiseKernel:
    """Pairwise score: compiled for CPU, and a plain torch reference, in chunks, for other devices.

    Attributes:
        reference: score of queries and rows, with broadcasting.
        indexed, block, ordered: kernels of ``pairwise.py``, each with its gradients.
    """

    reference: Callable[[Tensor, Tensor], Tensor]
    indexed: tuple[Kernel, Kernel]
    block: tuple[Kernel, Kernel]
    ordered: tuple[Kernel, Kernel]

    @classmethod
    def of(cls, name: str) -> PairwiseKernel:
        """Return the kernels of a distance of ``pairwise.py``."""
        forms = [
            (getattr(pairwise, f"{name}_{form}"), getattr(pairwise, f"{name}_{form}_gradients"))
            for form in ("indexed", "block", "ordered")
        ]
        return cls(getattr(pairwise, f"reference_{name}"), *forms)

    def scores(self, query: Tensor, rows: Tensor) -> Tensor:
        """Score every query [B, Q] with every row [U, C]: [B, U]."""
        out = query.new_empty(len(query), len(rows))
        if on_cpu(query, rows):
            queries, candidates, scores, run = _array(query), _array(rows), out.numpy(), self.block[0]
            for_each_part(len(query), lambda low, high: run(queries[low:high], candidates, scores[low:high]), _FEWEST)
            return out
        for low, high in _chunks(query, len(rows)):
            out[:, low:high] = self.reference(query[:, None], rows[low:high])
        return out

    def gradients(self, grad: Tensor, query: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of Σ grad·scores: [B, Q] and [U, C]."""
        if not on_cpu(grad, query, rows):
            return self.indexed_gradients(grad, query, rows, torch.arange(len(rows), device=rows.device)[None])
        grad_query, grad_rows = _zeros_like(query), _zeros_like(rows)
        arrays = map(_array, (grad, query, rows, grad_query, grad_rows))
        self.block[1](*arrays)
        return grad_query, grad_rows

    def indexed_scores(self, query: Tensor, rows: Tensor, index: Tensor, order: RowOrder | None = None) -> Tensor:
        """Score query i with rows[index[i, k]]: [B, K]; ``order`` is that of the index, if there is one."""
        out = query.new_empty(index.shape)
        if not on_cpu(query, rows, index):
            for low, high in _chunks(query, index.shape[1]):
                out[:, low:high] = self.reference(query[:, None], rows[index[:, low:high]])
        elif order is None:
            asked, candidates, places, scores = _array(query), _array(rows), _array(index), out.numpy()
            run = self.indexed[0]

            def score(low: int, high: int) -> None:
                run(asked[low:high], candidates, places[low:high], scores[low:high])

            for_each_part(len(query), score, _FEWEST)
        else:
            entries = np.empty(out.numel(), np.float32)
            asked, candidates, run = _array(query), _array(rows), self.ordered[0]

            def score_rows(low: int, high: int) -> None:
                run(asked, candidates[low:high], order.starts[low : high + 1], order.queries, entries)

            for_each(order.parts(), score_rows)
            order.back(entries, out.numpy())
        return out

    def indexed_gradients(
        self, grad: Tensor, query: Tensor, rows: Tensor, index: Tensor, order: RowOrder | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of Σ grad·scores: [B, Q] and [U, C]; ``index`` of one row is that of all queries."""
        grad_query, grad_rows = _zeros_like(query), _zeros_like(rows)
        self.add_indexed_gradients(grad, query, rows, index, grad_query, grad_rows, order)
        return grad_query, grad_rows

    def add_indexed_gradients(
        self,
        grad: Tensor,
        query: Tensor,
        rows: Tensor,
        index: Tensor,
        grad_query: Tensor,
        grad_rows: Tensor,
        order: RowOrder | None = None,
    ) -> None:
        """Add the gradients of Σ grad·scores to ``grad_query`` and ``grad_rows``."""
        if not on_cpu(grad, query, rows, index):
            for low, high in _chunks(query, index.shape[1]):
                part = index[:, low:high].expand(len(query), -1)
                with torch.enable_grad():
                    q, c = query.detach().requires_grad_(), rows[part].detach().requires_grad_()
                    value = self.reference(q[:, None], c)
                to_query, to_rows = torch.autograd.grad(with_gradient(value, grad[:, low:high]), (q, c))
                grad_query += to_query
                grad_rows.index_add_(0, part.flatten(), to_rows.flatten(0, 1))
            return
        places, single = _array(index), index.shape[1] == 1
        if order is None and single and torch.get_num_threads() > 1:
            order = RowOrder(places, len(rows))
        if order is None:
            self.indexed[1](_array(grad), _array(query), _array(rows), places, grad_query.numpy(), grad_rows.numpy())
        else:
            self._add_ordered_gradients(order, _array(grad), _array(query), _array(rows), grad_query, grad_rows, single)

    def _add_ordered_gradients(
        self,
        order: RowOrder,
        grad: np.ndarray,
        query: np.ndarray,
        rows: np.ndarray,
        grad_query: Tensor,
        grad_rows: Tensor,
        single: bool,
    ) -> None:
        """Add gradients, each thread those of its own rows; ``single``: no query has more than one entry.

        Otherwise threads sum for the same queries, each apart, so the result is rounded otherwise with other threads.
        """
        parts, to_rows, run = order.parts(), grad_rows.numpy(), self.ordered[1]
        sums = [grad_query] + [grad_query if single else torch.zeros_like(grad_query) for _ in parts[1:]]
        entries = order.sorted(grad)

        def add(to_query: np.ndarray, low: int, high: int) -> None:
            run(
                entries, query, rows[low:high], order.starts[low : high + 1], order.queries, to_query, to_rows[low:high]
            )

        for_each([(to_query.numpy(), *part) for to_query, part in zip(sums, parts, strict=True)], add)
        if not single:
            for to_query in sums[1:]:
                grad_query += to_query


def _zeros_like(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, memory_format=torch.contiguous_format)


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().contiguous().numpy()
    return array


def _chunks(query: Tensor, total: int) -> list[tuple[int, int]]:
    step = max(1, _CHUNK_BYTES // (4 * query.numel() + 1))
    return [(low, min(low + step, total)) for low in range(0, total, step)]


def row_order(query: Tensor, rows: Tensor, index: Tensor) -> RowOrder | None:
    """Return the order of an index for which it pays, on CPU: that of many entries; else None."""
    if index.numel() < _ORDERED or not on_cpu(query, rows, index):
        return None
    return RowOrder(index.numpy(), len(rows))


class _Indexed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, rows: Tensor, index: Tensor, similarity: Similarity) -> Tensor:  # type: ignore[no-untyped-def]
        index = index.expand(len(query), -1).contiguous()
        ctx.similarity, ctx.order = similarity, row_order(query, rows, index)
        scores = similarity.indexed_scores(query.detach(), rows.detach(), index, ctx.order)
        ctx.save_for_backward(query, rows, index, scores)
        return scores

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        query, rows, index, scores = ctx.saved_tensors
        query, rows = query.detach(), rows.detach()
        to_query, to_rows = _zeros_like(query), _zeros_like(rows)
        ctx.similarity.add_indexed_gradients(grad, scores, query, rows, index, to_query, to_rows, ctx.order)
        return to_query, to_rows, None, None


class ComparedInPairs(Similarity):
    """Base class of similarities that a pairwise kernel computes.

    Attributes:
        kernel: kernel of the similarity.
    """

    kernel: PairwiseKernel

    def indexed(self, query: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        scores: Tensor = _Indexed.apply(query, rows, index, self)
        return scores

    def indexed_scores(self, query: Tensor, rows: Tensor, index: Tensor, order: RowOrder | None = None) -> Tensor:
        return self.kernel.indexed_scores(query, rows, index, order)

    def add_indexed_gradients(
        self,
        grad: Tensor,
        scores: Tensor,
        query: Tensor,
        rows: Tensor,
        index: Tensor,
        to_query: Tensor,
        to_rows: Tensor,
        order: RowOrder | None = None,
    ) -> None:
        self.kernel.add_indexed_gradients(grad, query, rows, index, to_query, to_rows, order)


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

    def grouped(self, query: Tensor, candidates: Tensor) -> Tensor:
        """Score the queries of each group with its candidates: [G, B, Q], [G, N, C] -> [G, B, N]; differentiable."""
        norms = query.square().sum(-1)[:, :, None], candidates.square().sum(-1)[:, None]
        return self.combine(grouped_product(query, candidates), *norms)

    def indexed(self, query: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        inner = indexed_products(query, rows, index)
        norms = take_rows(rows.square().sum(-1, keepdim=True), index.flatten()).view(index.shape)
        return self.combine(inner, query.square().sum(-1, keepdim=True), norms)


class DotSimilarity(ComparedInPairs, ProductSimilarity):
    """Inner product ⟨q, c⟩."""

    name = "dot"
    kernel = PairwiseKernel.of("dot")

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

    def combine(self, inner: Tensor, query_norm: Tensor, candidate_norm: Tensor) -> Tensor:
        return inner

    def slopes(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return grad, grad.new_zeros(grad.shape[0]), grad.new_zeros(grad.shape[1])


class SquaredL2Similarity(ComparedInPairs, ProductSimilarity):
    """Negative squared Euclidean distance -|q - c|²."""

    name = "squared_l2"
    kernel = PairwiseKernel.of("squared")

    def combine(self, inner: Tensor, query_norm: Tensor, candidate_norm: Tensor) -> Tensor:
        return 2 * inner - query_norm - candidate_norm

    def slopes(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return 2 * grad, -grad.sum(1), -grad.sum(0)

    def log_sum_exp(self, query: Tensor, candidates: Tensor, *, keep: bool) -> LogSumExp:
        halves = query.new_full((len(query),), 0.5)  # half of 2x is the plain distance
        compiled = log_sum_exp_of_distances(Double(), query, halves, candidates, keep=keep)
        return compiled or super().log_sum_exp(query, candidates, keep=keep)


class L2Similarity(ComparedInPairs, ProductSimilarity):
    """Negative Euclidean distance -|q - c|, at least ``FLOOR``, below which float32 cancellation leaves no digits."""

    name = "l2"
    kernel = PairwiseKernel.of("squared")
    slopes_need_scores = True
    FLOOR = 1e-6

    def combine(self, inner: Tensor, query_norm: Tensor, candidate_norm: Tensor) -> Tensor:
        return -torch.sqrt((query_norm + candidate_norm - 2 * inner).clamp_min(self.FLOOR**2))

    def slopes(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return slopes_of_distances(grad, scores, self.FLOOR)

    def scores(self, query: Tensor, candidates: Tensor) -> Tensor:
        norms = squared_norms(query), squared_norms(candidates)
        return negative_distances(product(query, candidates), *norms, self.FLOOR)

    def indexed_scores(self, query: Tensor, rows: Tensor, index: Tensor, order: RowOrder | None = None) -> Tensor:
        squares = super().indexed_scores(query, rows, index, order)
        return squares.clamp_max_(-(self.FLOOR**2)).neg_().sqrt_().neg_()

    def add_indexed_gradients(
        self,
        grad: Tensor,
        scores: Tensor,
        query: Tensor,
        rows: Tensor,
        index: Tensor,
        to_query: Tensor,
        to_rows: Tensor,
        order: RowOrder | None = None,
    ) -> None:
        grad = slopes_of_distances(grad, scores, self.FLOOR)[0] / 2  # by −d²
        super().add_indexed_gradients(grad, scores, query, rows, index, to_query, to_rows, order)


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
        slopes = torch.autograd.grad(with_gradient(value, grad), (inner, query_norm, candidate_norm))
        return slopes[0], slopes[1].flatten(), slopes[2]


class PairwiseSimilarity(ComparedInPairs):
    """Similarity by a distance that is not a function of matrix products."""

    def __init__(self, name: str, kernel: PairwiseKernel) -> None:
        self.name = name
        self.kernel = kernel

    def pairs(self, query: Tensor, candidate: Tensor) -> Tensor:
        return self.kernel.reference(query, candidate)

    def scores(self, query: Tensor, candidates: Tensor) -> Tensor:
        return self.kernel.scores(query, candidates)

    def gradients(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        return self.kernel.gradients(grad, query, candidates)


DOT = DotSimilarity()
SQUARED_L2 = SquaredL2Similarity()
L2 = L2Similarity()
L1 = PairwiseSimilarity("l1", PairwiseKernel.of("l1"))
SCALED_L1 = PairwiseSimilarity("scaled_l1", PairwiseKernel.of("scaled_l1"))
AFFINE_L1 = PairwiseSimilarity("affine_l1", PairwiseKernel.of("affine_l1"))
MODULUS = PairwiseSimilarity("modulus", PairwiseKernel.of("modulus"))

_COMPILED: dict[type[Similarity], int] = {DotSimilarity: INNER, SquaredL2Similarity: SQUARED, L2Similarity: DISTANCE}


def compiled_score(similarity: Similarity) -> int | None:
    """Return the same score of ``kernels/sampled/products.py``; None if there is none, as for a subclass."""
    return _COMPILED.get(type(similarity))


def indexed_products(query: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Compute ⟨query i, rows[index[i, k]]⟩: [B, D], [U, D], int64 [B, K] -> [B, K]; differentiable."""
    return DOT.indexed(query, rows, index)
