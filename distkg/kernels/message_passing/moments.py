"""Aggregation of messages beyond a sum: sums of squares, maxima and minima, for mean, deviation, maximum and PNA.

Edges and messages are those of ``sums``. In addition to the four moments a compiled pass records which edge gave each
maximum and minimum (the first one of equals), so the backward pass needs no stored messages. One thread processes all
rows of a query, so results are deterministic: the same inputs give the same bits, with any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu, part_of_kernel
from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.messages import (
    REFERENCES,
    Given,
    Message,
    add_first,
    add_product,
    add_sum,
    add_turned,
    add_turned_back,
)
from distkg.kernels.message_passing.sums import AHEAD, on_gpu, shared
from distkg.kernels.threads import for_each
from distkg.kernels.vectors.prefetch import prefetch_row

NOBODY = -1  # edge index if a node gathers no message


class Moments(NamedTuple):
    """Moments of the messages that each node gathers: float32 [B, n, d] each; 0 for nodes without messages.

    Attributes:
        total, squares: sums of messages and of their squares.
        largest, smallest: element-wise maximum and minimum of messages; NaN wherever the sum is.
    """

    total: Tensor
    squares: Tensor
    largest: Tensor
    smallest: Tensor


def propagate_moments(
    states: Tensor, relations: Tensor, edges: Edges, weight: Tensor | None = None, message: Message = "distmult"
) -> Moments:
    """Compute the moments of the messages that each node gathers; differentiable in states and relations.

    Arguments are those of ``propagate``. A message is multiplied by its weight; messages of weight 0 are excluded.
    """
    edges = edges.to(states.device)
    weight = torch.ones(len(edges), device=states.device) if weight is None else weight.to(states.device)
    passes = _passes_for(states, relations, weight)
    if passes is None:
        return reference_moments(states, relations, edges, weight, message)
    return Moments(*_Moments.apply(states, relations, weight, edges, message, passes))


def reference_moments(states: Tensor, relations: Tensor, edges: Edges, weight: Tensor, message: Message) -> Moments:
    """Plain torch form of ``propagate_moments``, on one device; holds all messages at once."""
    there = weight != 0
    src, kind, dst = (side.long()[there] for side in (edges.src, edges.relation, edges.dst))
    messages = REFERENCES[message](states[:, src], relations[:, kind]) * weight[there, None]
    place = dst[None, :, None].expand_as(messages)
    nothing = messages.new_zeros(states.shape)
    total, squares = (nothing.index_add(1, dst, part) for part in (messages, messages.square()))
    largest, smallest = (
        nothing.scatter_reduce(1, place, messages, how, include_self=False) for how in ("amax", "amin")
    )
    return Moments(total, squares, largest, smallest)


class MomentPasses(Protocol):
    """Forward and backward passes over edges on one kind of device."""

    def gather(self, given: Given, found: Tensor, whose: Tensor) -> object:
        """Write the moments to ``found`` float32 [4, B, n, d], and the edges of the maxima and minima, or ``NOBODY``,
        to ``whose`` int32 [2, B, n, d]."""

    def gather_back(
        self, given: Given, gradients: Sequence[Tensor | None], whose: Tensor, to_states: Tensor, to_relations: Tensor
    ) -> object:
        """Write the gradients ``to_states`` [B, n, d] and ``to_relations`` float32 [B, kinds, d], given those of the
        four moments, float32 [B, n, d] each, None for zeros."""


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, states: Tensor, relations: Tensor, weight: Tensor, edges: Edges, message: Message, passes: MomentPasses
    ):
        states, relations, weight = states.contiguous(), relations.contiguous(), weight.contiguous()
        moments = states.new_empty(4, *states.shape, dtype=torch.float32)
        edge_of = states.new_empty(2, *states.shape, dtype=torch.int32)
        passes.gather(Given(edges, weight, states, relations, message), moments, edge_of)
        ctx.save_for_backward(states, relations, weight, edge_of)
        ctx.edges, ctx.message, ctx.passes = edges, message, passes
        ctx.set_materialize_grads(False)
        return tuple(moments)

    @staticmethod
    def backward(ctx, *gradients: Tensor | None):  # type: ignore[no-untyped-def]
        states, relations, weight, edge_of = ctx.saved_tensors
        back = tuple(None if gradient is None else gradient.contiguous() for gradient in gradients)
        to_states = torch.empty_like(states)
        of_queries = states.new_empty(len(states), *relations.shape[1:], dtype=torch.float32)
        inputs = Given(ctx.edges, weight, states, relations, ctx.message)
        ctx.passes.gather_back(inputs, back, edge_of, to_states, of_queries)
        return to_states, shared(of_queries, relations), None, None, None, None


def _passes_for(*tensors: Tensor) -> MomentPasses | None:
    """Return the compiled passes for these tensors, or None."""
    if on_cpu(*tensors):
        return _ON_CPU if all(tensor.dtype == torch.float32 for tensor in tensors) else None
    if on_gpu(*tensors):
        from distkg.kernels.message_passing import moments_triton as message_moments_triton

        return message_moments_triton
    return None


class _OnCpu:
    """CPU passes, with one task per query."""

    def gather(self, given: Given, found: Tensor, whose: Tensor) -> None:
        _for_each_query(KERNELS[given.message][0], given, (*found, *whose))

    def gather_back(
        self, given: Given, gradients: Sequence[Tensor | None], whose: Tensor, to_states: Tensor, to_relations: Tensor
    ) -> None:
        filled = (torch.zeros_like(given.states) if gradient is None else gradient for gradient in gradients)
        outs = to_states.zero_(), to_relations.zero_()
        _for_each_query(KERNELS[given.message][1], given, (*filled, *whose, *outs))


_ON_CPU = _OnCpu()


def _for_each_query(run: Callable[..., None], given: Given, tensors: Sequence[Tensor]) -> None:
    """Call ``run`` for each query, with the graph, the query's states and relations, and its parts of ``tensors``."""
    edges, weight, states, relations = (given.edges, *(tensor.detach().numpy() for tensor in given[1:4]))
    graph = edges.offsets.numpy(), edges.src.numpy(), edges.relation.numpy(), weight
    arrays, own = [tensor.numpy() for tensor in tensors], int(len(relations) > 1)
    tasks = [(i,) for i in range(len(states))]
    for_each(tasks, lambda i: run(*graph, states[i], relations[i * own], *(array[i] for array in arrays)))


@part_of_kernel
def _fill(row, value):  # type: ignore[no-untyped-def]
    for c in range(row.shape[1]):
        row[0, c] = value


@part_of_kernel
def _gather(  # type: ignore[no-untyped-def]
    add, offsets, src, kind, weight, states, relations, total, squares, largest, smallest, who_large, who_small
):
    last = src.shape[0] - 1
    message = np.empty((1, states.shape[1]), np.float32)
    for u in range(total.shape[0]):
        for c in range(total.shape[1]):
            total[u, c] = squares[u, c] = largest[u, c] = smallest[u, c] = np.float32(0)
            who_large[u, c] = who_small[u, c] = NOBODY
        for e in range(offsets[u], offsets[u + 1]):
            prefetch_row(states, src[min(e + AHEAD, last)])
            if weight[e] == 0:
                continue
            _fill(message, np.float32(0))
            add(states, src[e], relations, kind[e], weight[e], message, 0)
            for c in range(total.shape[1]):
                m = message[0, c]
                total[u, c] += m
                squares[u, c] += m * m
                if who_large[u, c] == NOBODY or m > largest[u, c]:
                    largest[u, c] = m
                    who_large[u, c] = e
                if who_small[u, c] == NOBODY or m < smallest[u, c]:
                    smallest[u, c] = m
                    who_small[u, c] = e
        for c in range(total.shape[1]):
            if total[u, c] != total[u, c]:  # comparisons are False for NaN
                largest[u, c] = smallest[u, c] = total[u, c]


@part_of_kernel
def _scatter(  # type: ignore[no-untyped-def]
    add, add_back, offsets, src, kind, weight, states, relations,
    to_total, to_squares, to_largest, to_smallest, who_large, who_small, to_states, to_relations,
):  # fmt: skip
    last = src.shape[0] - 1
    message = np.empty((1, states.shape[1]), np.float32)
    pull = np.empty_like(message)
    for u in range(to_total.shape[0]):
        for e in range(offsets[u], offsets[u + 1]):
            prefetch_row(states, src[min(e + AHEAD, last)])
            if weight[e] == 0:
                continue
            v, k = src[e], kind[e]
            _fill(message, np.float32(0))
            add(states, v, relations, k, weight[e], message, 0)
            for c in range(to_total.shape[1]):
                g = to_total[u, c] + 2 * to_squares[u, c] * message[0, c]
                if who_large[u, c] == e:
                    g += to_largest[u, c]
                if who_small[u, c] == e:
                    g += to_smallest[u, c]
                pull[0, c] = g
            add_back(pull, 0, relations, k, weight[e], to_states, v)
            add_back(pull, 0, states, v, weight[e], to_relations, k)


# One compiled entry per message: a kernel that takes a function as an argument would not be cached on disk.
@kernel
def _gather_distmult(offsets, src, kind, weight, x, w, s, q, high, low, most, least):  # type: ignore[no-untyped-def]
    _gather(add_product, offsets, src, kind, weight, x, w, s, q, high, low, most, least)


@kernel
def _gather_transe(offsets, src, kind, weight, x, w, s, q, high, low, most, least):  # type: ignore[no-untyped-def]
    _gather(add_sum, offsets, src, kind, weight, x, w, s, q, high, low, most, least)


@kernel
def _gather_rotate(offsets, src, kind, weight, x, w, s, q, high, low, most, least):  # type: ignore[no-untyped-def]
    _gather(add_turned, offsets, src, kind, weight, x, w, s, q, high, low, most, least)


@kernel
def _scatter_distmult(offsets, src, kind, weight, x, w, s, q, high, low, most, least, to_x, to_w):  # type: ignore[no-untyped-def]
    _scatter(add_product, add_product, offsets, src, kind, weight, x, w, s, q, high, low, most, least, to_x, to_w)


@kernel
def _scatter_transe(offsets, src, kind, weight, x, w, s, q, high, low, most, least, to_x, to_w):  # type: ignore[no-untyped-def]
    _scatter(add_sum, add_first, offsets, src, kind, weight, x, w, s, q, high, low, most, least, to_x, to_w)


@kernel
def _scatter_rotate(offsets, src, kind, weight, x, w, s, q, high, low, most, least, to_x, to_w):  # type: ignore[no-untyped-def]
    _scatter(add_turned, add_turned_back, offsets, src, kind, weight, x, w, s, q, high, low, most, least, to_x, to_w)


KERNELS: dict[Message, tuple[Callable[..., None], Callable[..., None]]] = {
    "distmult": (_gather_distmult, _scatter_distmult),
    "transe": (_gather_transe, _scatter_transe),
    "rotate": (_gather_rotate, _scatter_rotate),
}
