"""Relational message passing: weighted sums of messages at every node, without a tensor of edges × batch × width.

Node u of query b sums over its edges (u, kind, v) the weighted messages m(x[b, v], w[b, kind]). Weight 0 removes an
edge, so training can hide the facts of its queries without rebuilding the graph.

The three passes of a layer are one sum in three orders of the edges: messages by dst, gradients of states by src,
gradients of relations by kind. Each row of a result is summed by one thread, in the order of its edges, so results are
deterministic: the same inputs give the same bits, with any number of threads. Compiled for float32 on CPU, and in
``sums_triton`` for GPU; a plain torch form is the reference, and runs in all other cases.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu, part_of_kernel
from distkg.kernels.message_passing.edges import Edges, Rows
from distkg.kernels.message_passing.large_tensors import empty
from distkg.kernels.message_passing.messages import (
    BACK,
    MESSAGE,
    REFERENCES,
    Combination,
    Message,
    add_product,
    add_sum,
    add_turned,
    added,
    multiplied,
    only_first,
    turned,
    turned_back,
)
from distkg.kernels.threads import for_each
from distkg.kernels.vectors.prefetch import prefetch_row
from distkg.kernels.vectors.simd import (
    LANES,
    load,
    load_rest,
    load_whole,
    multiply_add,
    spread,
    store,
    store_rest,
    store_whole,
)

GPU_DTYPES = torch.float32, torch.bfloat16, torch.float16


def propagate(
    states: Tensor,
    relations: Tensor,
    edges: Edges,
    weight: Tensor | None = None,
    message: Message = "distmult",
    place: Tensor | None = None,
) -> Tensor:
    """Sum the weighted messages at each node: [B, n, d], in the dtype of states.

    Differentiable in states, relations and weight.

    Args:
        states: float32 [B, n, d]; on GPU also float16 or bfloat16, which are summed in float32.
        relations: float32 [B, kinds, d], or [1, kinds, d] if shared by all queries; on GPU as states.
        edges: E edges of the graph, on any device; they are copied once to the device of states.
        weight: float32 [E]; 0 removes an edge. None for 1 everywhere.
        message: ``distmult`` x w, ``transe`` x + w, ``rotate`` complex product of [real half | imaginary half].
        place: int64 [B], the row of relations [D, kinds, d] of each query, where queries share them; None for one row
            for each query, or for all.
    """
    edges = edges.to(states.device)
    weight = torch.ones(len(edges), device=states.device) if weight is None else weight.to(states.device)
    passes = passes_for(states, relations, weight)
    if place is not None:
        if passes is _ON_CPU and not _differentiable(states, relations, weight):
            out = empty(states)
            parts = edges.by_dst, weight, states.contiguous(), relations.contiguous(), MESSAGE[message], out
            _ON_CPU.gather(*parts, place.numpy())
            return out
        relations = relations.index_select(0, place)
    if passes is None:
        return reference_propagate(states, relations, edges, weight, message)
    sums: Tensor = _Propagate.apply(states, relations, weight, edges, message, passes)
    return sums


def _differentiable(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def reference_propagate(states: Tensor, relations: Tensor, edges: Edges, weight: Tensor, message: Message) -> Tensor:
    """Plain torch form of ``propagate``, on one device; holds all messages at once."""
    sources, by = states[:, edges.src.long()], relations[:, edges.relation.long()]
    messages = REFERENCES[message](sources, by) * weight[:, None]
    return torch.zeros_like(states).index_add(1, edges.dst.long(), messages.to(states.dtype))


class Passes(Protocol):
    """Forward and backward passes over edges on one kind of device; tensors are contiguous and on it."""

    def gather(
        self, rows: Rows, weight: Tensor, first: Tensor, second: Tensor, how: Combination, out: Tensor
    ) -> object:
        """Sum the combinations over the edges of each row into ``out`` [B, rows, d].

        Args:
            weight: [E] in the order of the rows; edges of weight 0 are not read.
            first, second: [B, ·, d], vectors to combine; the second may be [1, ·, d].
        """

    def to_weight(
        self, edges: Edges, states: Tensor, relations: Tensor, gradient: Tensor, how: Combination, out: Tensor
    ) -> object:
        """Write to ``out`` [E] the inner product of each edge's message and its dst's gradient, over all queries."""


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, states: Tensor, relations: Tensor, weight: Tensor, edges: Edges, message: Message, passes: Passes
    ):
        states, relations, weight = states.contiguous(), relations.contiguous(), weight.contiguous()
        out = empty(states)
        passes.gather(edges.by_dst, weight, states, relations, MESSAGE[message], out)
        ctx.save_for_backward(states, relations, weight)
        ctx.edges, ctx.message, ctx.passes = edges, message, passes
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        states, relations, weight = ctx.saved_tensors
        edges, passes, gradient = ctx.edges, ctx.passes, gradient.contiguous()
        to_states = to_relations = to_weight = None
        if ctx.needs_input_grad[0]:
            to_states, rows = empty(states), edges.by_src
            passes.gather(rows, rows.ordered(weight), gradient, relations, BACK[ctx.message], to_states)
        if ctx.needs_input_grad[1]:
            of_queries = weight.new_empty(len(states), *relations.shape[1:], dtype=torch.float32)
            passes.gather(
                edges.by_relation, edges.by_relation.ordered(weight), gradient, states, BACK[ctx.message], of_queries
            )
            to_relations = shared(of_queries, relations)
        if ctx.needs_input_grad[2]:
            to_weight = torch.empty_like(weight)
            passes.to_weight(edges, states, relations, gradient, MESSAGE[ctx.message], to_weight)
        return to_states, to_relations, to_weight, None, None, None


def shared(of_queries: Tensor, relations: Tensor) -> Tensor:
    """Reduce gradients per query [B, kinds, d] to the gradient of relations, which queries may share."""
    gradient = of_queries if len(relations) == len(of_queries) else of_queries.sum(0, keepdim=True)
    return gradient.to(relations.dtype)


def passes_for(*tensors: Tensor) -> Passes | None:
    """Return the compiled passes for these tensors, or None."""
    if on_cpu(*tensors):
        return _ON_CPU if all(tensor.dtype == torch.float32 for tensor in tensors) else None
    if on_gpu(*tensors):
        from distkg.kernels.message_passing import sums_triton as message_passing_triton

        return message_passing_triton
    return None


def on_gpu(*tensors: Tensor) -> bool:
    """Return True if the Triton kernels can read these tensors."""
    fit = all(tensor.is_cuda and tensor.dtype in GPU_DTYPES for tensor in tensors)
    return fit and importlib.util.find_spec("triton") is not None


class _OnCpu:
    """CPU passes. A task is one query and a part of the rows, since the states of one query fit a shared cache."""

    def gather(
        self,
        rows: Rows,
        weight: Tensor,
        first: Tensor,
        second: Tensor,
        how: Combination,
        out: Tensor,
        place: np.ndarray | None = None,
    ) -> None:
        """``Passes.gather``; ``place`` int64 [B] is the row of ``second`` of each query."""
        graph = rows.offsets.numpy(), rows.first.numpy(), rows.second.numpy(), weight.detach().numpy()
        left, right, sums = first.detach().numpy(), second.detach().numpy(), out.numpy()
        row = np.arange(len(left)) * int(len(right) > 1) if place is None else place
        run = GATHERERS[how]

        def work(query: int, low: int, high: int) -> None:
            run(*graph, left[query], right[row[query]], sums[query], low, high)

        for_each_part_of_edges(len(left), graph[0], work)

    def to_weight(
        self, edges: Edges, states: Tensor, relations: Tensor, gradient: Tensor, how: Combination, out: Tensor
    ) -> None:
        sides = edges.dst.numpy(), edges.src.numpy(), edges.relation.numpy()
        vectors = (tensor.detach().numpy() for tensor in (states, relations, gradient))
        arrays, run = (*sides, *vectors, out.numpy()), _PRODUCTS[how]
        for_each_part_of_edges(1, np.arange(len(edges) + 1), lambda _, low, high: run(*arrays, low, high))


_ON_CPU = _OnCpu()


def for_each_part_of_edges(count: int, offsets: np.ndarray, work: Callable[[int, int, int], Any]) -> None:
    """Call ``work(i, low, high)`` for i in 0 … count - 1 and parts of the rows with about equally many edges.

    There are enough parts to occupy all threads. ``offsets`` int64 [rows + 1] are starts of the edges of each row.
    """
    parts = -(-torch.get_num_threads() // max(count, 1))
    cuts = np.searchsorted(offsets, np.linspace(offsets[0], offsets[-1], parts + 1))
    cuts[0], cuts[-1] = 0, len(offsets) - 1
    for_each([(i, int(cuts[part]), int(cuts[part + 1])) for i in range(count) for part in range(parts)], work)


AHEAD = 48  # edges between the prefetch of a row and its use
_NEAR = 1 << 17  # numbers of a matrix that stays in a cache near the core, where a prefetch only costs time


# Sums of a tile of columns stay in registers while the edges of a row are walked: a sum in memory would wait for the
# store of the edge before. Four vectors are enough independent sums to fill the pipelines. Parts of the kernel have the
# loops over rows inside, because numba counts references to the arrays at every call.
@part_of_kernel
def _gather(combine, offsets, first, second, weight, x, w, out, low, high):  # type: ignore[no-untyped-def]
    if w.shape[0] * w.shape[1] > _NEAR:
        _sums(prefetch_row, combine, offsets, first, second, weight, x, w, out, low, high)
    else:
        _sums(_no_prefetch, combine, offsets, first, second, weight, x, w, out, low, high)


@part_of_kernel
def _no_prefetch(matrix, row):  # type: ignore[no-untyped-def]
    pass


@part_of_kernel
def _sums(prefetch_second, combine, offsets, first, second, weight, x, w, out, low, high):  # type: ignore[no-untyped-def]
    width, last, zero = out.shape[1], first.shape[0] - 1, spread(np.float32(0))
    fours, whole = width - width % (4 * LANES), width - width % LANES
    twos = fours + (whole - fours) // (2 * LANES) * (2 * LANES)
    for u in range(low, high):
        for c in range(0, fours, 4 * LANES):
            a0, a1, a2, a3 = zero, zero, zero, zero
            c1, c2, c3 = c + LANES, c + 2 * LANES, c + 3 * LANES
            for e in range(offsets[u], offsets[u + 1]):
                ahead = min(e + AHEAD, last)
                prefetch_row(x, first[ahead])
                prefetch_second(w, second[ahead])
                if weight[e] != 0:
                    v, k, factor = first[e], second[e], spread(weight[e])
                    a0 = multiply_add(factor, combine(load(x, v, c), load(w, k, c)), a0)
                    a1 = multiply_add(factor, combine(load(x, v, c1), load(w, k, c1)), a1)
                    a2 = multiply_add(factor, combine(load(x, v, c2), load(w, k, c2)), a2)
                    a3 = multiply_add(factor, combine(load(x, v, c3), load(w, k, c3)), a3)
            store(out, u, c, a0)
            store(out, u, c1, a1)
            store(out, u, c2, a2)
            store(out, u, c3, a3)
        for c in range(fours, twos, 2 * LANES):
            a0, a1, c1 = zero, zero, c + LANES
            for e in range(offsets[u], offsets[u + 1]):
                ahead = min(e + AHEAD, last)
                prefetch_row(x, first[ahead])
                prefetch_second(w, second[ahead])
                if weight[e] != 0:
                    v, k, factor = first[e], second[e], spread(weight[e])
                    a0 = multiply_add(factor, combine(load(x, v, c), load(w, k, c)), a0)
                    a1 = multiply_add(factor, combine(load(x, v, c1), load(w, k, c1)), a1)
            store(out, u, c, a0)
            store(out, u, c1, a1)
    for c in range(twos, whole, LANES):
        _one(
            load_whole, store_whole, prefetch_second, combine, offsets, first, second, weight, x, w, out, low, high,
            c, LANES,
        )  # fmt: skip
    if whole < width:
        _one(
            load_rest, store_rest, prefetch_second, combine, offsets, first, second, weight, x, w, out, low, high,
            whole, width - whole,
        )  # fmt: skip


@part_of_kernel
def _one(load, store, prefetch_second, combine, offsets, first, second, weight, x, w, out, low, high, c, left):  # type: ignore[no-untyped-def]
    """Sum ``left`` columns from c on."""
    last = first.shape[0] - 1
    for u in range(low, high):
        total = spread(np.float32(0))
        for e in range(offsets[u], offsets[u + 1]):
            ahead = min(e + AHEAD, last)
            prefetch_row(x, first[ahead])
            prefetch_second(w, second[ahead])
            if weight[e] != 0:
                message = combine(load(x, first[e], c, left), load(w, second[e], c, left))
                total = multiply_add(spread(weight[e]), message, total)
        store(out, u, c, left, total)


@part_of_kernel
def _gather_complex(combine, offsets, first, second, weight, x, w, out, low, high):  # type: ignore[no-untyped-def]
    if w.shape[0] * w.shape[1] > _NEAR:
        _complex_sums(prefetch_row, combine, offsets, first, second, weight, x, w, out, low, high)
    else:
        _complex_sums(_no_prefetch, combine, offsets, first, second, weight, x, w, out, low, high)


@part_of_kernel
def _complex_sums(prefetch_second, combine, offsets, first, second, weight, x, w, out, low, high):  # type: ignore[no-untyped-def]
    half = out.shape[1] // 2
    whole = half - half % LANES
    for c in range(0, whole, LANES):
        _pair(
            load_whole, store_whole, prefetch_second, combine, offsets, first, second, weight, x, w, out, low, high,
            c, half, LANES,
        )  # fmt: skip
    if whole < half:
        left = half - whole
        _pair(
            load_rest, store_rest, prefetch_second, combine, offsets, first, second, weight, x, w, out, low, high,
            whole, half, left,
        )  # fmt: skip


@part_of_kernel
def _pair(load, store, prefetch_second, combine, offsets, first, second, weight, x, w, out, low, high, c, half, left):  # type: ignore[no-untyped-def]
    """Sum ``left`` real parts from column c on, and their imaginary parts."""
    there, last = half + c, first.shape[0] - 1
    for u in range(low, high):
        real = spread(np.float32(0))
        imaginary = real
        for e in range(offsets[u], offsets[u + 1]):
            ahead = min(e + AHEAD, last)
            prefetch_row(x, first[ahead])
            prefetch_second(w, second[ahead])
            if weight[e] != 0:
                v, k, factor = first[e], second[e], spread(weight[e])
                real_state, imaginary_state = load(x, v, c, left), load(x, v, there, left)
                cosine, sine = load(w, k, c, left), load(w, k, there, left)
                more_real, more_imaginary = combine(real_state, imaginary_state, cosine, sine)
                real = multiply_add(factor, more_real, real)
                imaginary = multiply_add(factor, more_imaginary, imaginary)
        store(out, u, c, left, real)
        store(out, u, there, left, imaginary)


@part_of_kernel
def _products(add, dst, src, kind, states, relations, gradient, out, low, high):  # type: ignore[no-untyped-def]
    message = np.empty((1, states.shape[2]), np.float32)
    for e in range(low, high):
        out[e] = np.float32(0)
    for b in range(states.shape[0]):
        x, w, g = states[b], relations[b if relations.shape[0] > 1 else 0], gradient[b]
        for e in range(low, high):
            for c in range(message.shape[1]):
                message[0, c] = np.float32(0)
            add(x, src[e], w, kind[e], np.float32(1), message, 0)
            total = np.float32(0)
            for c in range(message.shape[1]):
                total += g[dst[e], c] * message[0, c]
            out[e] += total


# One compiled entry per combination: a kernel that takes a function as an argument would not be cached on disk.
@kernel
def _gather_product(offsets, first, second, weight, x, w, out, low, high):  # type: ignore[no-untyped-def]
    _gather(multiplied, offsets, first, second, weight, x, w, out, low, high)


@kernel
def _gather_sum(offsets, first, second, weight, x, w, out, low, high):  # type: ignore[no-untyped-def]
    _gather(added, offsets, first, second, weight, x, w, out, low, high)


@kernel
def _gather_first(offsets, first, second, weight, x, w, out, low, high):  # type: ignore[no-untyped-def]
    _gather(only_first, offsets, first, second, weight, x, w, out, low, high)


@kernel
def _gather_turned(offsets, first, second, weight, x, w, out, low, high):  # type: ignore[no-untyped-def]
    _gather_complex(turned, offsets, first, second, weight, x, w, out, low, high)


@kernel
def _gather_turned_back(offsets, first, second, weight, x, w, out, low, high):  # type: ignore[no-untyped-def]
    _gather_complex(turned_back, offsets, first, second, weight, x, w, out, low, high)


@kernel
def _products_product(dst, src, kind, x, w, g, out, low, high):  # type: ignore[no-untyped-def]
    _products(add_product, dst, src, kind, x, w, g, out, low, high)


@kernel
def _products_sum(dst, src, kind, x, w, g, out, low, high):  # type: ignore[no-untyped-def]
    _products(add_sum, dst, src, kind, x, w, g, out, low, high)


@kernel
def _products_turned(dst, src, kind, x, w, g, out, low, high):  # type: ignore[no-untyped-def]
    _products(add_turned, dst, src, kind, x, w, g, out, low, high)


GATHERERS: dict[Combination, Callable[..., None]] = {
    "product": _gather_product,
    "sum": _gather_sum,
    "first": _gather_first,
    "turned": _gather_turned,
    "turned back": _gather_turned_back,
}
_PRODUCTS: dict[Combination, Callable[..., None]] = {
    "product": _products_product,
    "sum": _products_sum,
    "turned": _products_turned,
}
