"""Messages of edges: combinations of a state and a relation vector, and their gradients.

A message and both of its gradients are each one of five combinations of two vectors, so every pass over edges, forward
or backward, is the same sum in another order of the edges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.compositions import complex_product
from distkg.kernels.jit import part_of_kernel
from distkg.kernels.message_passing.edges import Edges

Message = Literal["distmult", "transe", "rotate"]
Combination = Literal["product", "sum", "first", "turned", "turned back"]

MESSAGE: dict[Message, Combination] = {"distmult": "product", "transe": "sum", "rotate": "turned"}
"""Combination of a state and a relation for each message."""
BACK: dict[Message, Combination] = {"distmult": "product", "transe": "first", "rotate": "turned back"}
"""Combination for the gradients: message gradient and relation → state; message gradient and state → relation."""


class Given(NamedTuple):
    """Inputs of messages; tensors are contiguous and on one device.

    Attributes:
        weight: [E], weights of the edges.
        states, relations: [B, n, d] and [B or 1, kinds, d].
    """

    edges: Edges
    weight: Tensor
    states: Tensor
    relations: Tensor
    message: Message


REFERENCES: dict[Message, Callable[[Tensor, Tensor], Tensor]] = {
    "distmult": torch.mul,
    "transe": torch.add,
    "rotate": complex_product,
}

Array = np.ndarray


# Combinations of vectors of lanes, of a row of x and a row of w.
@part_of_kernel
def multiplied(x, w):  # type: ignore[no-untyped-def]
    return x * w


@part_of_kernel
def added(x, w):  # type: ignore[no-untyped-def]
    return x + w


@part_of_kernel
def only_first(x, w):  # type: ignore[no-untyped-def]
    return x


# Those of rows of complex numbers, given and returned as real and imaginary parts.
@part_of_kernel
def turned(real, imaginary, cosine, sine):  # type: ignore[no-untyped-def]
    return real * cosine - imaginary * sine, real * sine + imaginary * cosine


@part_of_kernel
def turned_back(real, imaginary, cosine, sine):  # type: ignore[no-untyped-def]
    return real * cosine + imaginary * sine, imaginary * cosine - real * sine


# Each adds ``weight`` times the combination of row v of x and row k of w to row u of ``out``. Rows are not bound to
# names, since numba counts a reference to the array for a named view, which costs more than the sum.
@part_of_kernel
def add_product(x: Array, v: int, w: Array, k: int, weight: np.float32, out: Array, u: int) -> None:
    for c in range(out.shape[1]):
        out[u, c] += weight * (x[v, c] * w[k, c])


@part_of_kernel
def add_sum(x: Array, v: int, w: Array, k: int, weight: np.float32, out: Array, u: int) -> None:
    for c in range(out.shape[1]):
        out[u, c] += weight * (x[v, c] + w[k, c])


@part_of_kernel
def add_first(x: Array, v: int, w: Array, k: int, weight: np.float32, out: Array, u: int) -> None:
    for c in range(out.shape[1]):
        out[u, c] += weight * x[v, c]


@part_of_kernel
def add_turned(x: Array, v: int, w: Array, k: int, weight: np.float32, out: Array, u: int) -> None:
    half = out.shape[1] // 2
    for c in range(half):
        real, imaginary, cosine, sine = x[v, c], x[v, half + c], w[k, c], w[k, half + c]
        out[u, c] += weight * (real * cosine - imaginary * sine)
        out[u, half + c] += weight * (real * sine + imaginary * cosine)


@part_of_kernel
def add_turned_back(x: Array, v: int, w: Array, k: int, weight: np.float32, out: Array, u: int) -> None:
    half = out.shape[1] // 2
    for c in range(half):
        real, imaginary, cosine, sine = x[v, c], x[v, half + c], w[k, c], w[k, half + c]
        out[u, c] += weight * (real * cosine + imaginary * sine)
        out[u, half + c] += weight * (imaginary * cosine - real * sine)
