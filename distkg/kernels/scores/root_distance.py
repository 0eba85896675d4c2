"""Compiled passes that turn inner products into negative Euclidean distances, and gradients of these back.

Plain torch needs six passes over the matrix of a block for either. Loops are vectorised by the compiler.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu

_zero, _half, _two = np.float32(0), np.float32(0.5), np.float32(2)


def negative_distances(inner: Tensor, query_norm: Tensor, candidate_norm: Tensor, floor: float) -> Tensor:
    """Compute −max(|q − c|, floor) from q·c [B, N] and the squared norms [B] and [N]; overwrites ``inner`` on CPU."""
    if not on_cpu(inner, query_norm, candidate_norm):
        squares = query_norm[:, None] + candidate_norm - 2 * inner
        return -torch.sqrt(squares.clamp_min(floor**2))
    _negative_distances(inner.numpy(), query_norm.numpy(), candidate_norm.numpy(), np.float32(floor**2))
    return inner


def slopes_of_distances(grad: Tensor, scores: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of Σ grad·scores by q·c [B, N], |q|² [B] and |c|² [N]; 0 at the floor.

    ``scores`` [B, N] is the result of ``negative_distances``.
    """
    if not on_cpu(grad, scores):
        half = torch.where(scores < -floor, grad / (-2 * scores), grad.new_zeros(()))
        return 2 * half, -half.sum(1), -half.sum(0)
    to_inner, to_query, to_candidates = torch.empty_like(grad), grad.new_zeros(len(grad)), grad.new_zeros(grad.shape[1])
    arrays = [tensor.numpy() for tensor in (grad.contiguous(), scores, to_inner, to_query, to_candidates)]
    _slopes(np.float32(-floor), *arrays)
    return to_inner, to_query, to_candidates


@kernel
def _negative_distances(
    inner: np.ndarray, query_norm: np.ndarray, candidate_norm: np.ndarray, least: np.float32
) -> None:
    for i in range(inner.shape[0]):
        row, own = inner[i], query_norm[i]
        for j in range(row.shape[0]):
            square = own + candidate_norm[j] - _two * row[j]
            square = least if square < least else square  # NaN stays
            row[j] = -math.sqrt(square)


@kernel
def _slopes(
    floor: np.float32,
    grad: np.ndarray,
    scores: np.ndarray,
    to_inner: np.ndarray,
    to_query: np.ndarray,
    to_candidates: np.ndarray,
) -> None:
    for i in range(grad.shape[0]):
        row, score, out = grad[i], scores[i], to_inner[i]
        total = _zero
        for j in range(row.shape[0]):
            slope = _zero if score[j] >= floor else -row[j] / score[j]
            out[j] = slope
            total += slope
            to_candidates[j] -= _half * slope
        to_query[i] = -_half * total
