"""log Σ exp of squared distances under an activation, on CPU: one compiled pass between two oneDNN products."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.gather_scatter import squared_norms
from distkg.kernels.jit import kernel, on_cpu
from distkg.kernels.products import product, products_are_exact
from distkg.kernels.scores.activations import Activation
from distkg.kernels.scores.distance_sums.exp_distance_weights import KINDS, weigh_rows
from distkg.kernels.scores.distance_sums.tiled_log_sum_exp import TiledLogSumExp
from distkg.kernels.scores.log_sum_exp import LogSumExp, blocks, nothing_summed
from distkg.kernels.threads import for_each_part

# Scores and candidates of a block: small enough for a core's cache, large enough for fast products.
_BLOCK_SCORES, _LEAST_ROWS = 256 * 1024, 1024
_FEWEST = 16  # queries or candidates of a part: with fewer, a thread costs more than it saves
# Dimensions from which a product with candidates as rows is faster than transposing the result.
_WIDE = 64


def log_sum_exp_of_distances(
    activation: Activation, vector: Tensor, scale: Tensor, candidates: Tensor, *, keep: bool
) -> LogSumExp | None:
    """Build the compiled log Σ exp of scores −h(scale · ‖vector − candidate‖²); None if the device or the
    activation has none."""
    vector, scale, candidates = vector.contiguous(), scale.contiguous(), candidates.contiguous()
    if type(activation) not in KINDS:
        return None
    if on_cpu(vector, scale, candidates):
        compiled = TiledLogSumExp if products_are_exact() else DistanceLogSumExp
        return compiled(activation, vector, scale, candidates, keep=keep)
    if vector.is_cuda and importlib.util.find_spec("triton"):
        from distkg.kernels.scores.distance_sums.distance_log_sum_exp_triton import TritonLogSumExp

        return TritonLogSumExp(activation, vector, scale, candidates)
    return None


class DistanceLogSumExp(LogSumExp):
    """log Σ exp of scores −h(scale · d²) on CPU: oneDNN products, and one compiled pass over a block between them.

    While h is below ``_SAFE``, nothing can under- or overflow. Otherwise exponents are relative to the smallest h of a
    query so far, and the sums are rescaled whenever a smaller one appears.
    """

    _SAFE = 60.0

    def __init__(
        self, activation: Activation, vector: Tensor, scale: Tensor, candidates: Tensor, *, keep: bool
    ) -> None:
        """vector float32 [B, D], scale float32 [B], candidates float32 [N, D]; all contiguous."""
        self._activation, self._candidates = activation, candidates
        self._vector, self._scale, self._norm = vector, scale, squared_norms(vector)
        self._candidate_norm = squared_norms(candidates)
        self._kind = KINDS[type(activation)]
        self._blocks = list(blocks(len(candidates), max(_LEAST_ROWS, _BLOCK_SCORES // max(len(vector), 1))))
        self._keep = keep
        self._kept: list[tuple[Tensor, Tensor]] = []
        bounded = activation.largest <= self._SAFE
        self._shift = torch.full_like(scale, 0.0 if bounded else torch.inf)
        self._bounded = bounded

    def first_pass(self) -> Tensor:
        self._sums = self._scale.new_zeros(len(self._scale), 3)
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
        return self._sums[:, 0].log() - self._shift

    def second_pass(self, log_sum: Tensor, weight: Tensor, grad_query: Tensor, grad_candidates: Tensor) -> None:
        if not self._blocks:
            return
        dim = self._vector.shape[1]
        share = weight * torch.exp(-self._shift - log_sum)
        _, weights, weighted = self._sums.unbind(1)
        push = (2 * share * self._scale)[:, None]
        grad_query[:, :dim] += push * (self._pull - weights[:, None] * self._vector)
        if grad_query.shape[1] > dim:
            grad_query[:, dim] -= share * weighted
        for i, (low, high) in enumerate(self._blocks):
            block, shift = self._kept[i] if self._keep else (self._again(low, high), self._shift)
            exact = push if shift is self._shift else push * torch.exp(self._shift - shift)[:, None]
            _push(block, exact, self._vector, self._candidates[low:high], grad_candidates[low:high])

    def _again(self, low: int, high: int) -> Tensor:
        block = product(self._vector, self._candidates[low:high])
        self._weights(block, low, high, torch.zeros_like(self._sums))
        return block

    def _weights(self, block: Tensor, low: int, high: int, sums: Tensor) -> None:
        norm = self._candidate_norm[low:high]
        inner, own, other, scale, shift, total = (
            tensor.numpy() for tensor in (block, self._norm, norm, self._scale, self._shift, sums)
        )
        limits = np.float32(self._activation.limit), np.float32(self._activation.steepness)

        def weigh(first: int, last: int) -> None:
            part = slice(first, last)
            weigh_rows(self._kind, inner[part], own[part], other, scale[part], shift[part], *limits, total[part])

        for_each_part(len(inner), weigh, _FEWEST)

    def _lower_shift(self, block: Tensor, candidate_norm: Tensor) -> None:
        nearest = (torch.sub(candidate_norm, block, alpha=2).amin(1) + self._norm).clamp_min_(0)
        lower = torch.minimum(self._shift, self._activation(self._scale * nearest))
        proportion = torch.exp(lower - self._shift)
        self._sums *= proportion[:, None]
        self._pull *= proportion[:, None]
        self._shift = lower


def _push(block: Tensor, push: Tensor, vector: Tensor, candidates: Tensor, grad: Tensor) -> None:
    """Add Σ_i w_ik (q_i − c_k) to grad [n, D], where w is ``block`` [B, n] times ``push`` [B, 1]."""
    if vector.shape[1] < _WIDE:
        # The last column sums the weights, so that one product gives both sums.
        summed = product(torch.cat((push * vector, push), dim=1).T, block.T)
        _add_in_parts(_add_transposed, grad, summed, candidates)
    else:
        summed = product(block.T, (push * vector).T)
        _add_in_parts(_add_pushed, grad, summed, candidates, torch.mv(block.T, push[:, 0]))


def _add_in_parts(add: Callable[..., None], grad: Tensor, *sums: Tensor) -> None:
    arrays = [tensor.numpy() for tensor in (grad, *sums)]
    for_each_part(len(grad), lambda low, high: add(*arrays, low, high), _FEWEST)


@kernel
def _add_pushed(
    grad: np.ndarray, summed: np.ndarray, candidates: np.ndarray, weights: np.ndarray, low: int, high: int
) -> None:
    """Add Σ w q − c Σ w to the rows low … high - 1 of grad [n, D], from the sums [n, D] and [n]."""
    for k in range(low, high):
        for j in range(grad.shape[1]):
            grad[k, j] += summed[k, j] - weights[k] * candidates[k, j]


@kernel
def _add_transposed(grad: np.ndarray, summed: np.ndarray, candidates: np.ndarray, low: int, high: int) -> None:
    """Add Σ w q − c Σ w to the rows low … high - 1 of grad [n, D], from the transposed sums [D + 1, n]."""
    dim = grad.shape[1]
    for k in range(low, high):
        weights = summed[dim, k]
        for j in range(dim):
            grad[k, j] += summed[j, k] - weights * candidates[k, j]
