"""What nodes gather beyond a sum: squares, largest and smallest messages, for mean, deviation, maximum and PNA.

As ``message_passing``, of which it takes edges and messages; a compiled pass keeps, beside the four, which edge gave
the largest and the smallest number, and so the way back needs no messages either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu, part_of_kernel
from distkg.kernels.message_passing import REFERENCES, Edges, Message, for_each

Array = np.ndarray
NOBODY = -1  # where no edge gave a number


class Moments(NamedTuple):
    """Of the messages that each node gathers: float32 [B, n, d] each; 0 where there are none.

    Attributes:
        total, squares: sums of messages and of their squares.
        largest, smallest: over messages, number by number.
    """

    total: Tensor
    squares: Tensor
    largest: Tensor
    smallest: Tensor


def propagate_moments(
    states: Tensor, relations: Tensor, edges: Edges, weight: Tensor | None = None, message: Message = "distmult"
) -> Moments:
    """Arguments as of ``propagate``; a message is multiplied by its weight, and one of weight 0 is not there.

    Differentiable in states and relations.
    """
    if weight is None:
        weight = torch.ones(len(edges), device=states.device)
    if states.dtype != torch.float32 or not on_cpu(states, relations, weight):
        return reference_moments(states, relations, edges, weight, message)
    return Moments(*_Moments.apply(states, relations, weight, edges, message))


def reference_moments(states: Tensor, relations: Tensor, edges: Edges, weight: Tensor, message: Message) -> Moments:
    """``propagate_moments`` in plain torch, on any device: holds all messages at once."""
    device = states.device
    there = weight.to(device) != 0
    giver, kind, gatherer = (side.long().to(device)[there] for side in (edges.giver, edges.kind, edges.gatherer))
    messages = REFERENCES[message](states[:, giver], relations[:, kind]) * weight.to(device)[there, None]
    place = gatherer[None, :, None].expand_as(messages)
    nothing = torch.zeros_like(states)
    total, squares = (nothing.index_add(1, gatherer, part) for part in (messages, messages.square()))
    largest, smallest = (
        nothing.scatter_reduce(1, place, messages, how, include_self=False) for how in ("amax", "amin")
    )
    return Moments(total, squares, largest, smallest)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: Tensor, relations: Tensor, weight: Tensor, edges: Edges, message: Message):  # type: ignore[no-untyped-def]
        states, relations = states.contiguous(), relations.contiguous()
        found = [torch.empty_like(states) for _ in range(4)]
        whose = [torch.empty(states.shape, dtype=torch.int32) for _ in range(2)]
        graph = edges.offsets.numpy(), edges.giver.numpy(), edges.kind.numpy(), weight.detach().numpy()
        given, by = states.detach().numpy(), relations.detach().numpy()
        outs = [tensor.numpy() for tensor in (*found, *whose)]
        own, run = int(len(by) > 1), KERNELS[message][0]
        for_each(len(given), lambda i: run(*graph, given[i], by[i * own], *(out[i] for out in outs)))
        ctx.save_for_backward(states, relations, weight, *whose)
        ctx.edges, ctx.message = edges, message
        return tuple(found)

    @staticmethod
    def backward(ctx, *gradients: Tensor):  # type: ignore[no-untyped-def]
        states, relations, weight, *whose = ctx.saved_tensors
        edges, own = ctx.edges, int(len(relations) > 1)
        to_states = torch.zeros_like(states)
        to_relations = torch.zeros(len(states), *relations.shape[1:])
        graph = edges.offsets.numpy(), edges.giver.numpy(), edges.kind.numpy(), weight.detach().numpy()
        given, by = states.detach().numpy(), relations.detach().numpy()
        back = [tensor.contiguous().numpy() for tensor in (*gradients, *whose)]
        outs = to_states.numpy(), to_relations.numpy()
        run = KERNELS[ctx.message][1]
        for_each(
            len(states),
            lambda i: run(*graph, given[i], by[i * own], *(part[i] for part in back), *(out[i] for out in outs)),
        )
        return to_states, to_relations if own else to_relations.sum(0, keepdim=True), None, None, None


# A message's number c, and the share of a gradient on it that goes to each of the four numbers that it may depend on.
@part_of_kernel
def _product(x: Array, w: Array, c: int) -> np.float32:
    return x[c] * w[c]


@part_of_kernel
def _product_back(x: Array, w: Array, c: int, g: np.float32, to_x: Array, to_w: Array) -> None:
    to_x[c] += g * w[c]
    to_w[c] += g * x[c]


@part_of_kernel
def _sum(x: Array, w: Array, c: int) -> np.float32:
    return x[c] + w[c]


@part_of_kernel
def _sum_back(x: Array, w: Array, c: int, g: np.float32, to_x: Array, to_w: Array) -> None:
    to_x[c] += g
    to_w[c] += g


@part_of_kernel
def _turn(x: Array, w: Array, c: int) -> np.float32:
    half = x.shape[0] // 2
    if c < half:
        return x[c] * w[c] - x[half + c] * w[half + c]
    return x[c - half] * w[c] + x[c] * w[c - half]


@part_of_kernel
def _turn_back(x: Array, w: Array, c: int, g: np.float32, to_x: Array, to_w: Array) -> None:
    half = x.shape[0] // 2
    if c < half:
        to_x[c] += g * w[c]
        to_x[half + c] -= g * w[half + c]
        to_w[c] += g * x[c]
        to_w[half + c] -= g * x[half + c]
    else:
        to_x[c - half] += g * w[c]
        to_x[c] += g * w[c - half]
        to_w[c] += g * x[c - half]
        to_w[c - half] += g * x[c]


@part_of_kernel
def _gather(  # type: ignore[no-untyped-def]
    message, offsets, giver, kind, weight, states, relations, total, squares, largest, smallest, who_large, who_small
):
    for u in range(total.shape[0]):
        sums, square, high, low = total[u], squares[u], largest[u], smallest[u]
        for c in range(sums.shape[0]):
            sums[c] = square[c] = high[c] = low[c] = np.float32(0)
            who_large[u, c] = who_small[u, c] = NOBODY
        for e in range(offsets[u], offsets[u + 1]):
            if weight[e] == 0:
                continue
            x, w = states[giver[e]], relations[kind[e]]
            for c in range(sums.shape[0]):
                m = weight[e] * message(x, w, c)
                sums[c] += m
                square[c] += m * m
                if m > high[c] or who_large[u, c] == NOBODY:
                    high[c] = m
                    who_large[u, c] = e
                if m < low[c] or who_small[u, c] == NOBODY:
                    low[c] = m
                    who_small[u, c] = e


@part_of_kernel
def _scatter(  # type: ignore[no-untyped-def]
    message, back, offsets, giver, kind, weight, states, relations,
    to_total, to_squares, to_largest, to_smallest, who_large, who_small, to_states, to_relations,
):  # fmt: skip
    for u in range(to_total.shape[0]):
        for e in range(offsets[u], offsets[u + 1]):
            if weight[e] == 0:
                continue
            v, k = giver[e], kind[e]
            x, w = states[v], relations[k]
            for c in range(to_total.shape[1]):
                g = to_total[u, c] + 2 * to_squares[u, c] * weight[e] * message(x, w, c)
                if who_large[u, c] == e:
                    g += to_largest[u, c]
                if who_small[u, c] == e:
                    g += to_smallest[u, c]
                back(x, w, c, weight[e] * g, to_states[v], to_relations[k])


# One compiled entry for each message, as a function passed as an argument would not be cached on disk.
@kernel
def _gather_distmult(offsets, giver, kind, weight, x, w, s, q, high, low, most, least):  # type: ignore[no-untyped-def]
    _gather(_product, offsets, giver, kind, weight, x, w, s, q, high, low, most, least)


@kernel
def _gather_transe(offsets, giver, kind, weight, x, w, s, q, high, low, most, least):  # type: ignore[no-untyped-def]
    _gather(_sum, offsets, giver, kind, weight, x, w, s, q, high, low, most, least)


@kernel
def _gather_rotate(offsets, giver, kind, weight, x, w, s, q, high, low, most, least):  # type: ignore[no-untyped-def]
    _gather(_turn, offsets, giver, kind, weight, x, w, s, q, high, low, most, least)


@kernel
def _scatter_distmult(offsets, giver, kind, weight, x, w, s, q, high, low, most, least, to_x, to_w):  # type: ignore[no-untyped-def]
    _scatter(_product, _product_back, offsets, giver, kind, weight, x, w, s, q, high, low, most, least, to_x, to_w)


@kernel
def _scatter_transe(offsets, giver, kind, weight, x, w, s, q, high, low, most, least, to_x, to_w):  # type: ignore[no-untyped-def]
    _scatter(_sum, _sum_back, offsets, giver, kind, weight, x, w, s, q, high, low, most, least, to_x, to_w)


@kernel
def _scatter_rotate(offsets, giver, kind, weight, x, w, s, q, high, low, most, least, to_x, to_w):  # type: ignore[no-untyped-def]
    _scatter(_turn, _turn_back, offsets, giver, kind, weight, x, w, s, q, high, low, most, least, to_x, to_w)


KERNELS: dict[Message, tuple[Callable[..., None], Callable[..., None]]] = {
    "distmult": (_gather_distmult, _scatter_distmult),
    "transe": (_gather_transe, _scatter_transe),
    "rotate": (_gather_rotate, _scatter_rotate),
}
