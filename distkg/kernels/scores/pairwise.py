"""Kernels of pairwise scores, computed in registers: no tensor of size B×N×D is written.

For each distance there are three forms, each with gradients, which are added to what is there:

- ``NAME_indexed`` compares query i with ``rows[index[i, k]]``;
- ``NAME_block`` compares every query with every row, in tiles of two by two, which load what they share once;
- ``NAME_ordered`` does the same as indexed, for the entries of a ``RowOrder``, which reads each row once.

``reference_*`` are plain torch forms for tests, and for devices without a compiled kernel. The kernels are written out
for each distance, because numba caches only functions with a place of their own in a file.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel
from distkg.kernels.scores.distances import (
    TINY,
    add_one,
    add_three,
    add_two,
    affine_l1_slopes,
    affine_l1_term,
    dot_slopes,
    dot_term,
    l1_slopes,
    l1_term,
    load_one,
    load_three,
    load_two,
    modulus_slopes,
    modulus_term,
    scaled_l1_slopes,
    scaled_l1_term,
    scaled_squared_slopes,
    scaled_squared_term,
    squared_slopes,
    squared_term,
    store_one,
    store_three,
    store_two,
)
from distkg.kernels.scores.pairwise_loops import (
    add_block_gradients,
    add_indexed_gradients,
    add_ordered_gradients,
    score_block,
    score_indexed,
    score_ordered,
)

Array = np.ndarray
_one, _minus, _half = np.float32(1), np.float32(-1), np.float32(-0.5)


@kernel
def dot_indexed(query: Array, rows: Array, index: Array, out: Array) -> None:
    score_indexed(load_one, load_one, dot_term, _one, query, rows, rows.shape[1], index, out)


@kernel
def dot_indexed_gradients(
    grad: Array, query: Array, rows: Array, index: Array, grad_query: Array, grad_rows: Array
) -> None:
    add_indexed_gradients(
        load_one, load_one, add_one, add_one, store_one, store_one, dot_slopes, _one, grad, query, rows,
        rows.shape[1], index, grad_query, grad_rows,
    )  # fmt: skip


@kernel
def dot_block(query: Array, rows: Array, out: Array) -> None:
    score_block(load_one, load_one, dot_term, _one, query, rows, rows.shape[1], out)


@kernel
def dot_block_gradients(grad: Array, query: Array, rows: Array, grad_query: Array, grad_rows: Array) -> None:
    add_block_gradients(
        load_one, load_one, add_one, add_one, store_one, store_one, dot_slopes, _one, grad, query, rows,
        rows.shape[1], grad_query, grad_rows,
    )  # fmt: skip


@kernel
def dot_ordered(query: Array, rows: Array, starts: Array, queries: Array, out: Array) -> None:
    score_ordered(load_one, load_one, dot_term, _one, query, rows, rows.shape[1], starts, queries, out)


@kernel
def dot_ordered_gradients(
    grad: Array, query: Array, rows: Array, starts: Array, queries: Array, grad_query: Array, grad_rows: Array
) -> None:
    add_ordered_gradients(
        load_one, load_one, add_one, add_one, store_one, store_one, dot_slopes, _one, grad, query, rows,
        rows.shape[1], starts, queries, grad_query, grad_rows,
    )  # fmt: skip


@kernel
def squared_indexed(query: Array, rows: Array, index: Array, out: Array) -> None:
    score_indexed(load_one, load_one, squared_term, _minus, query, rows, rows.shape[1], index, out)


@kernel
def squared_indexed_gradients(
    grad: Array, query: Array, rows: Array, index: Array, grad_query: Array, grad_rows: Array
) -> None:
    add_indexed_gradients(
        load_one, load_one, add_one, add_one, store_one, store_one, squared_slopes, _minus, grad, query, rows,
        rows.shape[1], index, grad_query, grad_rows,
    )  # fmt: skip


@kernel
def squared_block(query: Array, rows: Array, out: Array) -> None:
    score_block(load_one, load_one, squared_term, _minus, query, rows, rows.shape[1], out)


@kernel
def squared_block_gradients(grad: Array, query: Array, rows: Array, grad_query: Array, grad_rows: Array) -> None:
    add_block_gradients(
        load_one, load_one, add_one, add_one, store_one, store_one, squared_slopes, _minus, grad, query, rows,
        rows.shape[1], grad_query, grad_rows,
    )  # fmt: skip


@kernel
def squared_ordered(query: Array, rows: Array, starts: Array, queries: Array, out: Array) -> None:
    score_ordered(load_one, load_one, squared_term, _minus, query, rows, rows.shape[1], starts, queries, out)


@kernel
def squared_ordered_gradients(
    grad: Array, query: Array, rows: Array, starts: Array, queries: Array, grad_query: Array, grad_rows: Array
) -> None:
    add_ordered_gradients(
        load_one, load_one, add_one, add_one, store_one, store_one, squared_slopes, _minus, grad, query, rows,
        rows.shape[1], starts, queries, grad_query, grad_rows,
    )  # fmt: skip


@kernel
def l1_indexed(query: Array, rows: Array, index: Array, out: Array) -> None:
    score_indexed(load_one, load_one, l1_term, _minus, query, rows, rows.shape[1], index, out)


@kernel
def l1_indexed_gradients(
    grad: Array, query: Array, rows: Array, index: Array, grad_query: Array, grad_rows: Array
) -> None:
    add_indexed_gradients(
        load_one, load_one, add_one, add_one, store_one, store_one, l1_slopes, _minus, grad, query, rows,
        rows.shape[1], index, grad_query, grad_rows,
    )  # fmt: skip


@kernel
def l1_block(query: Array, rows: Array, out: Array) -> None:
    score_block(load_one, load_one, l1_term, _minus, query, rows, rows.shape[1], out)


@kernel
def l1_block_gradients(grad: Array, query: Array, rows: Array, grad_query: Array, grad_rows: Array) -> None:
    add_block_gradients(
        load_one, load_one, add_one, add_one, store_one, store_one, l1_slopes, _minus, grad, query, rows,
        rows.shape[1], grad_query, grad_rows,
    )  # fmt: skip


@kernel
def l1_ordered(query: Array, rows: Array, starts: Array, queries: Array, out: Array) -> None:
    score_ordered(load_one, load_one, l1_term, _minus, query, rows, rows.shape[1], starts, queries, out)


@kernel
def l1_ordered_gradients(
    grad: Array, query: Array, rows: Array, starts: Array, queries: Array, grad_query: Array, grad_rows: Array
) -> None:
    add_ordered_gradients(
        load_one, load_one, add_one, add_one, store_one, store_one, l1_slopes, _minus, grad, query, rows,
        rows.shape[1], starts, queries, grad_query, grad_rows,
    )  # fmt: skip


@kernel
def scaled_l1_indexed(query: Array, rows: Array, index: Array, out: Array) -> None:
    score_indexed(load_two, load_one, scaled_l1_term, _minus, query, rows, rows.shape[1], index, out)


@kernel
def scaled_l1_indexed_gradients(
    grad: Array, query: Array, rows: Array, index: Array, grad_query: Array, grad_rows: Array
) -> None:
    add_indexed_gradients(
        load_two, load_one, add_two, add_one, store_two, store_one, scaled_l1_slopes, _minus, grad, query, rows,
        rows.shape[1], index, grad_query, grad_rows,
    )  # fmt: skip


@kernel
def scaled_l1_block(query: Array, rows: Array, out: Array) -> None:
    score_block(load_two, load_one, scaled_l1_term, _minus, query, rows, rows.shape[1], out)


@kernel
def scaled_l1_block_gradients(grad: Array, query: Array, rows: Array, grad_query: Array, grad_rows: Array) -> None:
    add_block_gradients(
        load_two, load_one, add_two, add_one, store_two, store_one, scaled_l1_slopes, _minus, grad, query, rows,
        rows.shape[1], grad_query, grad_rows,
    )  # fmt: skip


@kernel
def scaled_l1_ordered(query: Array, rows: Array, starts: Array, queries: Array, out: Array) -> None:
    score_ordered(load_two, load_one, scaled_l1_term, _minus, query, rows, rows.shape[1], starts, queries, out)


@kernel
def scaled_l1_ordered_gradients(
    grad: Array, query: Array, rows: Array, starts: Array, queries: Array, grad_query: Array, grad_rows: Array
) -> None:
    add_ordered_gradients(
        load_two, load_one, add_two, add_one, store_two, store_one, scaled_l1_slopes, _minus, grad, query, rows,
        rows.shape[1], starts, queries, grad_query, grad_rows,
    )  # fmt: skip


@kernel
def scaled_squared_indexed(query: Array, rows: Array, index: Array, out: Array) -> None:
    score_indexed(load_two, load_one, scaled_squared_term, _minus, query, rows, rows.shape[1], index, out)


@kernel
def scaled_squared_indexed_gradients(
    grad: Array, query: Array, rows: Array, index: Array, grad_query: Array, grad_rows: Array
) -> None:
    add_indexed_gradients(
        load_two, load_one, add_two, add_one, store_two, store_one, scaled_squared_slopes, _minus, grad, query, rows,
        rows.shape[1], index, grad_query, grad_rows,
    )  # fmt: skip


@kernel
def scaled_squared_block(query: Array, rows: Array, out: Array) -> None:
    score_block(load_two, load_one, scaled_squared_term, _minus, query, rows, rows.shape[1], out)


@kernel
def scaled_squared_block_gradients(grad: Array, query: Array, rows: Array, grad_query: Array, grad_rows: Array) -> None:
    add_block_gradients(
        load_two, load_one, add_two, add_one, store_two, store_one, scaled_squared_slopes, _minus, grad, query, rows,
        rows.shape[1], grad_query, grad_rows,
    )  # fmt: skip


@kernel
def scaled_squared_ordered(query: Array, rows: Array, starts: Array, queries: Array, out: Array) -> None:
    score_ordered(load_two, load_one, scaled_squared_term, _minus, query, rows, rows.shape[1], starts, queries, out)


@kernel
def scaled_squared_ordered_gradients(
    grad: Array, query: Array, rows: Array, starts: Array, queries: Array, grad_query: Array, grad_rows: Array
) -> None:
    add_ordered_gradients(
        load_two, load_one, add_two, add_one, store_two, store_one, scaled_squared_slopes, _minus, grad, query, rows,
        rows.shape[1], starts, queries, grad_query, grad_rows,
    )  # fmt: skip


@kernel
def affine_l1_indexed(query: Array, rows: Array, index: Array, out: Array) -> None:
    score_indexed(load_three, load_two, affine_l1_term, _minus, query, rows, rows.shape[1] // 2, index, out)


@kernel
def affine_l1_indexed_gradients(
    grad: Array, query: Array, rows: Array, index: Array, grad_query: Array, grad_rows: Array
) -> None:
    add_indexed_gradients(
        load_three, load_two, add_three, add_two, store_three, store_two, affine_l1_slopes, _minus, grad, query, rows,
        rows.shape[1] // 2, index, grad_query, grad_rows,
    )  # fmt: skip


@kernel
def affine_l1_block(query: Array, rows: Array, out: Array) -> None:
    score_block(load_three, load_two, affine_l1_term, _minus, query, rows, rows.shape[1] // 2, out)


@kernel
def affine_l1_block_gradients(grad: Array, query: Array, rows: Array, grad_query: Array, grad_rows: Array) -> None:
    add_block_gradients(
        load_three, load_two, add_three, add_two, store_three, store_two, affine_l1_slopes, _minus, grad, query, rows,
        rows.shape[1] // 2, grad_query, grad_rows,
    )  # fmt: skip


@kernel
def affine_l1_ordered(query: Array, rows: Array, starts: Array, queries: Array, out: Array) -> None:
    score_ordered(load_three, load_two, affine_l1_term, _minus, query, rows, rows.shape[1] // 2, starts, queries, out)


@kernel
def affine_l1_ordered_gradients(
    grad: Array, query: Array, rows: Array, starts: Array, queries: Array, grad_query: Array, grad_rows: Array
) -> None:
    add_ordered_gradients(
        load_three, load_two, add_three, add_two, store_three, store_two, affine_l1_slopes, _minus, grad, query, rows,
        rows.shape[1] // 2, starts, queries, grad_query, grad_rows,
    )  # fmt: skip


@kernel
def modulus_indexed(query: Array, rows: Array, index: Array, out: Array) -> None:
    score_indexed(load_two, load_two, modulus_term, _half, query, rows, rows.shape[1] // 2, index, out)


@kernel
def modulus_indexed_gradients(
    grad: Array, query: Array, rows: Array, index: Array, grad_query: Array, grad_rows: Array
) -> None:
    add_indexed_gradients(
        load_two, load_two, add_two, add_two, store_two, store_two, modulus_slopes, _half, grad, query, rows,
        rows.shape[1] // 2, index, grad_query, grad_rows,
    )  # fmt: skip


@kernel
def modulus_block(query: Array, rows: Array, out: Array) -> None:
    score_block(load_two, load_two, modulus_term, _half, query, rows, rows.shape[1] // 2, out)


@kernel
def modulus_block_gradients(grad: Array, query: Array, rows: Array, grad_query: Array, grad_rows: Array) -> None:
    add_block_gradients(
        load_two, load_two, add_two, add_two, store_two, store_two, modulus_slopes, _half, grad, query, rows,
        rows.shape[1] // 2, grad_query, grad_rows,
    )  # fmt: skip


@kernel
def modulus_ordered(query: Array, rows: Array, starts: Array, queries: Array, out: Array) -> None:
    score_ordered(load_two, load_two, modulus_term, _half, query, rows, rows.shape[1] // 2, starts, queries, out)


@kernel
def modulus_ordered_gradients(
    grad: Array, query: Array, rows: Array, starts: Array, queries: Array, grad_query: Array, grad_rows: Array
) -> None:
    add_ordered_gradients(
        load_two, load_two, add_two, add_two, store_two, store_two, modulus_slopes, _half, grad, query, rows,
        rows.shape[1] // 2, starts, queries, grad_query, grad_rows,
    )  # fmt: skip


def reference_dot(query: Tensor, candidate: Tensor) -> Tensor:
    """Compute Σ_j q_j c_j over the last dimension, with broadcasting."""
    return (query * candidate).sum(-1)


def reference_squared(query: Tensor, candidate: Tensor) -> Tensor:
    """Compute -Σ_j (q_j - c_j)² over the last dimension, with broadcasting."""
    return -(query - candidate).square().sum(-1)


def reference_l1(query: Tensor, candidate: Tensor) -> Tensor:
    """Compute -Σ_j |q_j - c_j| over the last dimension, with broadcasting."""
    return -(query - candidate).abs().sum(-1)


def reference_scaled_l1(query: Tensor, candidate: Tensor) -> Tensor:
    """Compute -Σ_j |q_j - s_j c_j|, query = [q | s], over the last dimension, with broadcasting."""
    point, scale = query.chunk(2, -1)
    return -(point - scale * candidate).abs().sum(-1)


def reference_scaled_squared(query: Tensor, candidate: Tensor) -> Tensor:
    """Compute -Σ_j (q_j - s_j c_j)², query = [q | s], over the last dimension, with broadcasting."""
    point, scale = query.chunk(2, -1)
    return -(point - scale * candidate).square().sum(-1)


def reference_affine_l1(query: Tensor, candidate: Tensor) -> Tensor:
    """Compute -Σ_j |q_j + a_j c_j + b_j d_j|, query = [q | a | b] and candidate = [c | d], over the last dimension,
    with broadcasting."""
    (point, first, second), (one, other) = query.chunk(3, -1), candidate.chunk(2, -1)
    return -(point + first * one + second * other).abs().sum(-1)


def reference_modulus(query: Tensor, candidate: Tensor) -> Tensor:
    """Compute -Σ_j |q_j - c_j| over complex numbers stored as halves, over the last dimension, with broadcasting."""
    real, imaginary = (query - candidate).chunk(2, -1)
    return -torch.sqrt(real.square() + imaginary.square() + float(TINY)).sum(-1)
