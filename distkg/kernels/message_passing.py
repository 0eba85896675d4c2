"""Relational message passing: every node gathers what its edges bring, without a tensor of edges × batch × width.

Node u of query b gathers from each edge (u, kind, v) the message m(x[b, v], w[b, kind]), weighted. An edge is left out
by the weight 0, so that a training which hides the facts that it asks for never rebuilds a graph. Compiled for float32
on CPU, one thread for each query; the plain form beside it is the reference, and serves other devices.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu, part_of_kernel

Message = Literal["distmult", "transe", "rotate"]


@dataclass(frozen=True)
class Edges:
    """Typed edges, sorted by the node that gathers.

    Attributes:
        nodes: how many nodes.
        kinds: how many kinds of edges.
        gatherer, giver: int32 [E], nodes u and v.
        kind: int32 [E].
        offsets: int64 [nodes + 1]; the edges of node u are ``offsets[u] … offsets[u + 1] - 1``.
    """

    nodes: int
    kinds: int
    gatherer: Tensor
    giver: Tensor
    kind: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, gatherer: Tensor, kind: Tensor, giver: Tensor, nodes: int, kinds: int) -> Edges:
        """Edges in any order, integer [E] each; their order becomes that of (gatherer, kind, giver)."""
        order = torch.from_numpy(np.lexsort((giver.numpy(), kind.numpy(), gatherer.numpy())))
        offsets = torch.zeros(nodes + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(gatherer, minlength=nodes), 0, out=offsets[1:])
        return cls(nodes, kinds, gatherer[order].int(), giver[order].int(), kind[order].int(), offsets)

    def __len__(self) -> int:
        return len(self.kind)

    def degrees(self, weight: Tensor | None = None) -> Tensor:
        """Edges by which each node gathers, those of weight 0 left out: int64 [nodes]."""
        if weight is None:
            return self.offsets.diff()
        return torch.bincount(self.gatherer[weight.cpu() != 0], minlength=self.nodes)


def propagate(
    states: Tensor, relations: Tensor, edges: Edges, weight: Tensor | None = None, message: Message = "distmult"
) -> Tensor:
    """Weighted sum of the messages that each node gathers: float32 [B, n, d]; differentiable in all three tensors.

    Args:
        states: float32 [B, n, d].
        relations: float32 [B, kinds, d], or [1, kinds, d] where all queries share them.
        edges: of the graph, E of them.
        weight: float32 [E]; 0 leaves an edge out. None for 1 everywhere.
        message: ``distmult`` x w, ``transe`` x + w, ``rotate`` the complex product of halves.
    """
    if weight is None:
        weight = torch.ones(len(edges), device=states.device)
    if states.dtype != torch.float32 or not on_cpu(states, relations, weight):
        return reference_propagate(states, relations, edges, weight, message)
    found: Tensor = _Propagate.apply(states, relations, weight, edges, message)
    return found


def reference_propagate(states: Tensor, relations: Tensor, edges: Edges, weight: Tensor, message: Message) -> Tensor:
    """``propagate`` in plain torch, on any device: holds all messages at once."""
    device = states.device
    given = states[:, edges.giver.long().to(device)]
    by = relations[:, edges.kind.long().to(device)]
    messages = REFERENCES[message](given, by) * weight[:, None]
    return torch.zeros_like(states).index_add(1, edges.gatherer.long().to(device), messages)


def _complex_product(left: Tensor, right: Tensor) -> Tensor:
    (real, imaginary), (turn_real, turn_imaginary) = left.chunk(2, -1), right.chunk(2, -1)
    parts = real * turn_real - imaginary * turn_imaginary, real * turn_imaginary + imaginary * turn_real
    return torch.cat(parts, -1)


REFERENCES: dict[Message, Callable[[Tensor, Tensor], Tensor]] = {
    "distmult": torch.mul,
    "transe": torch.add,
    "rotate": _complex_product,
}


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: Tensor, relations: Tensor, weight: Tensor, edges: Edges, message: Message):  # type: ignore[no-untyped-def]
        states, relations = states.contiguous(), relations.contiguous()
        out = torch.empty_like(states)
        graph = edges.offsets.numpy(), edges.giver.numpy(), edges.kind.numpy(), weight.detach().numpy()
        given, by, gathered = (tensor.detach().numpy() for tensor in (states, relations, out))
        own = int(len(by) > 1)
        run = KERNELS[message][0]
        for_each(len(given), lambda i: run(*graph, given[i], by[i * own], gathered[i]))
        ctx.save_for_backward(states, relations, weight)
        ctx.edges, ctx.message = edges, message
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        states, relations, weight = ctx.saved_tensors
        edges, wanted = ctx.edges, ctx.needs_input_grad[2]
        batch, own = len(states), int(len(relations) > 1)
        to_states = torch.zeros_like(states)
        to_relations = torch.zeros(batch, *relations.shape[1:])
        to_weight = torch.zeros(batch if wanted else 1, len(edges) if wanted else 0)
        graph = edges.offsets.numpy(), edges.giver.numpy(), edges.kind.numpy(), weight.detach().numpy()
        given, by, back = (t.detach().numpy() for t in (states, relations, gradient.contiguous()))
        outs = to_states.numpy(), to_relations.numpy(), to_weight.numpy()
        run = KERNELS[ctx.message][1]
        for_each(
            batch, lambda i: run(*graph, given[i], by[i * own], back[i], outs[0][i], outs[1][i], outs[2][i * wanted])
        )
        if not own:
            to_relations = to_relations.sum(0, keepdim=True)
        return to_states, to_relations, to_weight.sum(0) if wanted else None, None, None


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="message-passing")


def for_each(count: int, work: Callable[[int], Any]) -> None:
    """``work(i)`` for i in 0 … count-1, on as many threads as torch may use: kernels release the interpreter's lock."""
    threads = min(torch.get_num_threads(), count)
    if threads < 2:
        for i in range(count):
            work(i)
        return
    list(_threads(threads).map(work, range(count)))


Array = np.ndarray


@part_of_kernel
def _product(x: Array, w: Array, weight: np.float32, out: Array) -> None:
    for c in range(x.shape[0]):
        out[c] += weight * (x[c] * w[c])


@part_of_kernel
def _product_back(x: Array, w: Array, g: Array, weight: np.float32, to_x: Array, to_w: Array) -> np.float32:
    total = np.float32(0)
    for c in range(x.shape[0]):
        step = weight * g[c]
        to_x[c] += step * w[c]
        to_w[c] += step * x[c]
        total += g[c] * x[c] * w[c]
    return total


@part_of_kernel
def _sum(x: Array, w: Array, weight: np.float32, out: Array) -> None:
    for c in range(x.shape[0]):
        out[c] += weight * (x[c] + w[c])


@part_of_kernel
def _sum_back(x: Array, w: Array, g: Array, weight: np.float32, to_x: Array, to_w: Array) -> np.float32:
    total = np.float32(0)
    for c in range(x.shape[0]):
        step = weight * g[c]
        to_x[c] += step
        to_w[c] += step
        total += g[c] * (x[c] + w[c])
    return total


@part_of_kernel
def _turn(x: Array, w: Array, weight: np.float32, out: Array) -> None:
    half = x.shape[0] // 2
    for c in range(half):
        real, imaginary, cosine, sine = x[c], x[half + c], w[c], w[half + c]
        out[c] += weight * (real * cosine - imaginary * sine)
        out[half + c] += weight * (real * sine + imaginary * cosine)


@part_of_kernel
def _turn_back(x: Array, w: Array, g: Array, weight: np.float32, to_x: Array, to_w: Array) -> np.float32:
    half, total = x.shape[0] // 2, np.float32(0)
    for c in range(half):
        real, imaginary, cosine, sine = x[c], x[half + c], w[c], w[half + c]
        left, right = weight * g[c], weight * g[half + c]
        to_x[c] += left * cosine + right * sine
        to_x[half + c] += right * cosine - left * sine
        to_w[c] += left * real + right * imaginary
        to_w[half + c] += right * real - left * imaginary
        total += g[c] * (real * cosine - imaginary * sine) + g[half + c] * (real * sine + imaginary * cosine)
    return total


@part_of_kernel
def _gather(add, offsets, giver, kind, weight, states, relations, out):  # type: ignore[no-untyped-def]
    for u in range(out.shape[0]):
        row = out[u]
        for c in range(row.shape[0]):
            row[c] = np.float32(0)
        for e in range(offsets[u], offsets[u + 1]):
            if weight[e] != 0:
                add(states[giver[e]], relations[kind[e]], weight[e], row)


@part_of_kernel
def _scatter(  # type: ignore[no-untyped-def]
    add_back, offsets, giver, kind, weight, states, relations, gradient, to_states, to_relations, to_weight
):
    for u in range(gradient.shape[0]):
        g = gradient[u]
        for e in range(offsets[u], offsets[u + 1]):
            v, k = giver[e], kind[e]
            if weight[e] != 0 or to_weight.shape[0]:
                total = add_back(states[v], relations[k], g, weight[e], to_states[v], to_relations[k])
                if to_weight.shape[0]:
                    to_weight[e] = total


# One compiled entry for each message, as a function passed as an argument would not be cached on disk.
@kernel
def _gather_distmult(offsets, giver, kind, weight, states, relations, out):  # type: ignore[no-untyped-def]
    _gather(_product, offsets, giver, kind, weight, states, relations, out)


@kernel
def _gather_transe(offsets, giver, kind, weight, states, relations, out):  # type: ignore[no-untyped-def]
    _gather(_sum, offsets, giver, kind, weight, states, relations, out)


@kernel
def _gather_rotate(offsets, giver, kind, weight, states, relations, out):  # type: ignore[no-untyped-def]
    _gather(_turn, offsets, giver, kind, weight, states, relations, out)


@kernel
def _scatter_distmult(offsets, giver, kind, weight, states, relations, g, to_x, to_w, to_weight):  # type: ignore[no-untyped-def]
    _scatter(_product_back, offsets, giver, kind, weight, states, relations, g, to_x, to_w, to_weight)


@kernel
def _scatter_transe(offsets, giver, kind, weight, states, relations, g, to_x, to_w, to_weight):  # type: ignore[no-untyped-def]
    _scatter(_sum_back, offsets, giver, kind, weight, states, relations, g, to_x, to_w, to_weight)


@kernel
def _scatter_rotate(offsets, giver, kind, weight, states, relations, g, to_x, to_w, to_weight):  # type: ignore[no-untyped-def]
    _scatter(_turn_back, offsets, giver, kind, weight, states, relations, g, to_x, to_w, to_weight)


KERNELS: dict[Message, tuple[Callable[..., None], Callable[..., None]]] = {
    "distmult": (_gather_distmult, _scatter_distmult),
    "transe": (_gather_transe, _scatter_transe),
    "rotate": (_gather_rotate, _scatter_rotate),
}
