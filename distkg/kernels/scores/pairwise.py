"""Kernels of pairwise scores, computed in registers: no tensor of size B×N×D is written.

Every kernel compares query i with ``rows[index[i, k]]``. An ``index`` of one row is shared by all queries, so the same
kernel is used for negatives shared by a chunk, separate negatives of each query, and ranking. ``reference_*`` are plain
torch forms for tests, and for devices without a compiled kernel.

The loops are repeated for each distance: with a shared loop that takes the distance as an argument, the gradients were
a quarter slower, because the compiler could not infer that rows do not overlap.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel

_TINY = np.float32(1e-30)  # keeps the derivative of |z| finite at z = 0
_BLOCK = 128  # rows that stay in the L2 cache while all queries are compared with them


@kernel
def dot_scores(query: np.ndarray, rows: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
    """Compute out[i, k] = q_i · c."""
    own = 1 if index.shape[0] > 1 else 0
    for low in range(0, index.shape[1], _BLOCK):
        for i in range(query.shape[0]):
            for k in range(low, min(low + _BLOCK, index.shape[1])):
                row = index[i * own, k]
                total = np.float32(0)
                for j in range(query.shape[1]):
                    total += query[i, j] * rows[row, j]
                out[i, k] = total


@kernel
def dot_gradients(
    grad: np.ndarray,
    query: np.ndarray,
    rows: np.ndarray,
    index: np.ndarray,
    grad_query: np.ndarray,
    grad_rows: np.ndarray,
) -> None:
    """Add d(Σ grad·out)/d(query, rows) into the last two arguments."""
    own = 1 if index.shape[0] > 1 else 0
    for low in range(0, index.shape[1], _BLOCK):
        for i in range(query.shape[0]):
            for k in range(low, min(low + _BLOCK, index.shape[1])):
                row = index[i * own, k]
                g = grad[i, k]
                for j in range(query.shape[1]):
                    grad_query[i, j] += g * rows[row, j]
                    grad_rows[row, j] += g * query[i, j]


@kernel
def l1_scores(query: np.ndarray, rows: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
    """Compute out[i, k] = -Σ_j |q_ij - c_j|."""
    own = 1 if index.shape[0] > 1 else 0
    for low in range(0, index.shape[1], _BLOCK):
        for i in range(query.shape[0]):
            for k in range(low, min(low + _BLOCK, index.shape[1])):
                row = index[i * own, k]
                total = np.float32(0)
                for j in range(query.shape[1]):
                    total += abs(query[i, j] - rows[row, j])
                out[i, k] = -total


@kernel
def l1_gradients(
    grad: np.ndarray,
    query: np.ndarray,
    rows: np.ndarray,
    index: np.ndarray,
    grad_query: np.ndarray,
    grad_rows: np.ndarray,
) -> None:
    """Add d(Σ grad·out)/d(query, rows) into the last two arguments."""
    own = 1 if index.shape[0] > 1 else 0
    for low in range(0, index.shape[1], _BLOCK):
        for i in range(query.shape[0]):
            for k in range(low, min(low + _BLOCK, index.shape[1])):
                row = index[i * own, k]
                g = grad[i, k]
                for j in range(query.shape[1]):
                    gap = query[i, j] - rows[row, j]
                    step = g if gap > 0 else (-g if gap < 0 else np.float32(0))
                    grad_query[i, j] -= step
                    grad_rows[row, j] += step


@kernel
def scaled_l1_scores(query: np.ndarray, rows: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
    """Compute out[i, k] = -Σ_j |q_ij - s_ij c_j|, with the scales s in the second half of the query."""
    own = 1 if index.shape[0] > 1 else 0
    width = rows.shape[1]
    for low in range(0, index.shape[1], _BLOCK):
        for i in range(query.shape[0]):
            for k in range(low, min(low + _BLOCK, index.shape[1])):
                row = index[i * own, k]
                total = np.float32(0)
                for j in range(width):
                    total += abs(query[i, j] - query[i, width + j] * rows[row, j])
                out[i, k] = -total


@kernel
def scaled_l1_gradients(
    grad: np.ndarray,
    query: np.ndarray,
    rows: np.ndarray,
    index: np.ndarray,
    grad_query: np.ndarray,
    grad_rows: np.ndarray,
) -> None:
    """Add d(Σ grad·out)/d(query, rows) into the last two arguments."""
    own = 1 if index.shape[0] > 1 else 0
    width = rows.shape[1]
    for low in range(0, index.shape[1], _BLOCK):
        for i in range(query.shape[0]):
            for k in range(low, min(low + _BLOCK, index.shape[1])):
                row = index[i * own, k]
                g = grad[i, k]
                for j in range(width):
                    gap = query[i, j] - query[i, width + j] * rows[row, j]
                    step = g if gap > 0 else (-g if gap < 0 else np.float32(0))
                    grad_query[i, j] -= step
                    grad_query[i, width + j] += step * rows[row, j]
                    grad_rows[row, j] += step * query[i, width + j]


@kernel
def modulus_scores(query: np.ndarray, rows: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
    """Compute out[i, k] = -Σ_j |q_ij - c_j| over complex numbers stored as [real half | imaginary half]."""
    own = 1 if index.shape[0] > 1 else 0
    half = query.shape[1] // 2
    for low in range(0, index.shape[1], _BLOCK):
        for i in range(query.shape[0]):
            for k in range(low, min(low + _BLOCK, index.shape[1])):
                row = index[i * own, k]
                total = np.float32(0)
                for j in range(half):
                    real = query[i, j] - rows[row, j]
                    imaginary = query[i, half + j] - rows[row, half + j]
                    total += math.sqrt(real * real + imaginary * imaginary)
                out[i, k] = -total


@kernel
def modulus_gradients(
    grad: np.ndarray,
    query: np.ndarray,
    rows: np.ndarray,
    index: np.ndarray,
    grad_query: np.ndarray,
    grad_rows: np.ndarray,
) -> None:
    """Add d(Σ grad·out)/d(query, rows) into the last two arguments."""
    own = 1 if index.shape[0] > 1 else 0
    half = query.shape[1] // 2
    for low in range(0, index.shape[1], _BLOCK):
        for i in range(query.shape[0]):
            for k in range(low, min(low + _BLOCK, index.shape[1])):
                row = index[i * own, k]
                g = grad[i, k]
                for j in range(half):
                    real = query[i, j] - rows[row, j]
                    imaginary = query[i, half + j] - rows[row, half + j]
                    scale = g / math.sqrt(real * real + imaginary * imaginary + _TINY)
                    grad_query[i, j] -= scale * real
                    grad_query[i, half + j] -= scale * imaginary
                    grad_rows[row, j] += scale * real
                    grad_rows[row, half + j] += scale * imaginary


def reference_dot(query: Tensor, candidate: Tensor) -> Tensor:
    """Compute Σ_j q_j c_j over the last dimension, with broadcasting."""
    return (query * candidate).sum(-1)


def reference_l1(query: Tensor, candidate: Tensor) -> Tensor:
    """Compute -Σ_j |q_j - c_j| over the last dimension, with broadcasting."""
    return -(query - candidate).abs().sum(-1)


def reference_scaled_l1(query: Tensor, candidate: Tensor) -> Tensor:
    """Compute -Σ_j |q_j - s_j c_j|, query = [q | s], over the last dimension, with broadcasting."""
    point, scale = query.chunk(2, -1)
    return -(point - scale * candidate).abs().sum(-1)


def reference_modulus(query: Tensor, candidate: Tensor) -> Tensor:
    """Compute -Σ_j |q_j - c_j| over complex numbers stored as halves, over the last dimension, with broadcasting."""
    real, imaginary = (query - candidate).chunk(2, -1)
    return -torch.sqrt(real.square() + imaginary.square() + float(_TINY)).sum(-1)
