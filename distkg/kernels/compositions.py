"""Compositions of anchors and relations to queries, compiled: rows are read and gradients added where they lie.

In plain torch a query takes a copy of its anchor's row and one of its relation's row, and as many passes over memory
again for the gradient of each. Here, ``query[i] = rows[anchor[i]] ∘ operands[relation[i]]`` is one pass, and its
gradient another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu, part_of_kernel
from distkg.kernels.scores.distances import add_one, add_two, load_one, load_two, store_one, store_two
from distkg.kernels.threads import for_each_part
from distkg.kernels.vectors.prefetch import AHEAD, prefetch_row
from distkg.kernels.vectors.simd import LANES, load_rest, load_whole, spread, store_rest, store_whole

Array = np.ndarray
_one = np.float32(1)
_FEWEST = 256  # queries of a part: with fewer, a thread costs more than it saves


@dataclass(frozen=True)
class Composition:
    """Composition ∘ of a row and an operand, vectors of equal width.

    Attributes:
        plain: definition in plain torch, row by row: [..., width], [..., width] -> [..., width].
        composing: kernel ``(rows, anchor, operands, relation, query)``.
        adding: kernel ``(grad, rows, anchor, operands, relation, to_rows, to_operands, first, last)`` of the columns
            first … last - 1 of a part; ``first`` is a multiple of ``LANES``.
        parts: parts of a row that the kernels load together.
    """

    plain: Callable[[Tensor, Tensor], Tensor]
    composing: Callable[..., None]
    adding: Callable[..., None]
    parts: int = 1

    def compose(self, rows: Array, anchor: Array, operands: Array, relation: Array, query: Array) -> None:
        """Write the queries [b, width]."""

        def compose(low: int, high: int) -> None:
            self.composing(rows, anchor[low:high], operands, relation[low:high], query[low:high])

        for_each_part(len(anchor), compose, _FEWEST)

    def add_gradients(
        self,
        grad: Array,
        rows: Array,
        anchor: Array,
        operands: Array,
        relation: Array,
        to_rows: Array,
        to_operands: Array,
    ) -> None:
        """Add the gradients of Σ grad·query; threads share the columns, since rows occur more than once."""
        width, arrays = rows.shape[1] // self.parts, (grad, rows, anchor, operands, relation, to_rows, to_operands)

        def add(low: int, high: int) -> None:
            self.adding(*arrays, low * LANES, min(high * LANES, width))

        for_each_part(-(-width // LANES), add)

    def cross(self, rows: Tensor, operands: Tensor) -> Tensor:
        """Compose every row with every operand: [b, width], [r, width] -> [b, r, width]; differentiable."""
        if not on_cpu(rows, operands) or rows.dtype != torch.float32 or operands.dtype != torch.float32:
            return self.plain(rows[:, None], operands)
        crossed: Tensor = _Cross.apply(rows, operands, self)
        return crossed


class _Cross(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, operands: Tensor, composition: Composition) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(rows, operands)
        ctx.composition = composition
        query = rows.new_empty(len(rows) * len(operands), rows.shape[1])
        composition.compose(*_cross_inputs(rows, operands), query.numpy())
        return query.unflatten(0, (len(rows), len(operands)))

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        rows, operands = ctx.saved_tensors
        to_rows, to_operands = (
            torch.zeros_like(each, memory_format=torch.contiguous_format) for each in (rows, operands)
        )
        arrays = gradient.flatten(0, 1).contiguous().numpy(), *_cross_inputs(rows, operands)
        ctx.composition.add_gradients(*arrays, to_rows.numpy(), to_operands.numpy())
        return to_rows, to_operands, None


def _cross_inputs(rows: Tensor, operands: Tensor) -> tuple[Array, Array, Array, Array]:
    """Return the arguments of ``compose`` for every row with every operand."""
    row = torch.arange(len(rows)).repeat_interleave(len(operands))
    arrays = rows, row, operands, torch.arange(len(operands)).repeat(len(rows))
    first, places, second, others = (each.detach().contiguous().numpy() for each in arrays)
    return first, places, second, others


# Of a row a and an operand r in vectors: the query, and for its gradient g those of both.


@part_of_kernel
def _sum(a, r):  # type: ignore[no-untyped-def]
    return (a[0] + r[0],)


@part_of_kernel
def _sum_slopes(g, a, r):  # type: ignore[no-untyped-def]
    return g, g


@part_of_kernel
def _product(a, r):  # type: ignore[no-untyped-def]
    return (a[0] * r[0],)


@part_of_kernel
def _product_slopes(g, a, r):  # type: ignore[no-untyped-def]
    return (g[0] * r[0],), (g[0] * a[0],)


@part_of_kernel
def _complex_product(a, r):  # type: ignore[no-untyped-def]
    return a[0] * r[0] - a[1] * r[1], a[0] * r[1] + a[1] * r[0]


@part_of_kernel
def _complex_product_slopes(g, a, r):  # type: ignore[no-untyped-def]
    return (
        (g[0] * r[0] + g[1] * r[1], g[1] * r[0] - g[0] * r[1]),
        (g[0] * a[0] + g[1] * a[1], g[1] * a[0] - g[0] * a[1]),
    )


# fmt: off
@part_of_kernel
def _compose_part(  # type: ignore[no-untyped-def]
    load_parts, store_parts, compose, load, store, rows, row, operands, operand, query, i, j, left, width
):
    a, r = load_parts(load, rows, row, j, left, width), load_parts(load, operands, operand, j, left, width)
    store_parts(store, query, i, j, left, width, compose(a, r))


@part_of_kernel
def _compose(load_parts, store_parts, compose, rows, anchor, operands, relation, width, query):  # type: ignore[no-untyped-def]
    whole = width // LANES * LANES
    for i in range(anchor.shape[0]):
        if i + AHEAD < anchor.shape[0]:
            prefetch_row(rows, anchor[i + AHEAD])
        row, operand = anchor[i], relation[i]
        for j in range(0, whole, LANES):
            _compose_part(
                load_parts, store_parts, compose, load_whole, store_whole, rows, row, operands, operand, query, i, j, 0,
                width,
            )
        if whole < width:
            _compose_part(
                load_parts, store_parts, compose, load_rest, store_rest, rows, row, operands, operand, query, i, whole,
                width - whole, width,
            )


@part_of_kernel
def _add_part_gradients(  # type: ignore[no-untyped-def]
    load_parts, store_parts, add_parts, slopes, load, store, grad, i, rows, row, operands, operand, j, left, width,
    to_rows, to_operands,
):
    g = load_parts(load, grad, i, j, left, width)
    a, r = load_parts(load, rows, row, j, left, width), load_parts(load, operands, operand, j, left, width)
    to_a, to_r = slopes(g, a, r)
    sum_a = add_parts(spread(_one), to_a, load_parts(load, to_rows, row, j, left, width))
    store_parts(store, to_rows, row, j, left, width, sum_a)
    sum_r = add_parts(spread(_one), to_r, load_parts(load, to_operands, operand, j, left, width))
    store_parts(store, to_operands, operand, j, left, width, sum_r)


@part_of_kernel
def _add_gradients(  # type: ignore[no-untyped-def]
    load_parts, store_parts, add_parts, slopes, grad, rows, anchor, operands, relation, width, to_rows, to_operands,
    first, last,
):
    whole = first + (last - first) // LANES * LANES
    for i in range(anchor.shape[0]):
        if i + AHEAD < anchor.shape[0]:
            prefetch_row(rows, anchor[i + AHEAD])
            prefetch_row(to_rows, anchor[i + AHEAD])
        row, operand = anchor[i], relation[i]
        for j in range(first, whole, LANES):
            _add_part_gradients(
                load_parts, store_parts, add_parts, slopes, load_whole, store_whole, grad, i, rows, row, operands,
                operand, j, 0, width, to_rows, to_operands,
            )
        if whole < last:
            _add_part_gradients(
                load_parts, store_parts, add_parts, slopes, load_rest, store_rest, grad, i, rows, row, operands,
                operand, whole, last - whole, width, to_rows, to_operands,
            )
# fmt: on


@kernel
def _compose_sum(rows: Array, anchor: Array, operands: Array, relation: Array, query: Array) -> None:
    _compose(load_one, store_one, _sum, rows, anchor, operands, relation, rows.shape[1], query)


@kernel
def _sum_gradients(
    grad: Array,
    rows: Array,
    anchor: Array,
    operands: Array,
    relation: Array,
    to_rows: Array,
    to_operands: Array,
    first: int,
    last: int,
) -> None:
    width = rows.shape[1]
    _add_gradients(
        load_one, store_one, add_one, _sum_slopes, grad, rows, anchor, operands, relation, width, to_rows,
        to_operands, first, last,
    )  # fmt: skip


@kernel
def _compose_product(rows: Array, anchor: Array, operands: Array, relation: Array, query: Array) -> None:
    _compose(load_one, store_one, _product, rows, anchor, operands, relation, rows.shape[1], query)


@kernel
def _product_gradients(
    grad: Array,
    rows: Array,
    anchor: Array,
    operands: Array,
    relation: Array,
    to_rows: Array,
    to_operands: Array,
    first: int,
    last: int,
) -> None:
    width = rows.shape[1]
    _add_gradients(
        load_one, store_one, add_one, _product_slopes, grad, rows, anchor, operands, relation, width, to_rows,
        to_operands, first, last,
    )  # fmt: skip


@kernel
def _compose_complex_product(rows: Array, anchor: Array, operands: Array, relation: Array, query: Array) -> None:
    _compose(load_two, store_two, _complex_product, rows, anchor, operands, relation, rows.shape[1] // 2, query)


@kernel
def _complex_product_gradients(
    grad: Array,
    rows: Array,
    anchor: Array,
    operands: Array,
    relation: Array,
    to_rows: Array,
    to_operands: Array,
    first: int,
    last: int,
) -> None:
    width = rows.shape[1] // 2
    _add_gradients(
        load_two, store_two, add_two, _complex_product_slopes, grad, rows, anchor, operands, relation, width,
        to_rows, to_operands, first, last,
    )  # fmt: skip


def complex_product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply complex numbers element-wise, [real half | imaginary half]: [..., 2n], [..., 2n] -> [..., 2n]."""
    a, b = left.chunk(2, dim=-1)
    c, d = right.chunk(2, dim=-1)
    return torch.cat((a * c - b * d, a * d + b * c), dim=-1)


SUM = Composition(torch.add, _compose_sum, _sum_gradients)
PRODUCT = Composition(torch.mul, _compose_product, _product_gradients)
COMPLEX_PRODUCT = Composition(complex_product, _compose_complex_product, _complex_product_gradients, parts=2)
