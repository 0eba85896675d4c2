"""Inner products of the vectors at both ends of every edge, and their gradients, without a tensor of edges × width."""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.kernels.edges import Edges
from distkg.kernels.message_passing import passes_for


def edge_products(gatherers: Tensor, givers: Tensor, edges: Edges) -> Tensor:
    """Inner products of ``gatherers[u]`` and ``givers[v]`` for every edge (u, v): float32 [E]; differentiable in both.

    Args:
        gatherers, givers: float32 [n, d].
        edges: of the graph; they are copied to the device of the vectors once.
    """
    edges = edges.to(gatherers.device)
    if passes_for(gatherers, givers) is None:
        return reference_edge_products(gatherers, givers, edges)
    found: Tensor = _EdgeProducts.apply(gatherers, givers, edges)
    return found


def reference_edge_products(gatherers: Tensor, givers: Tensor, edges: Edges) -> Tensor:
    """``edge_products`` in plain torch: holds both vectors of all edges."""
    return (gatherers[edges.gatherer.long()] * givers[edges.giver.long()]).sum(1)


class _EdgeProducts(torch.autograd.Function):
    """In terms of message passing: the gradient of an edge's weight; and back, sums weighted by these gradients."""

    @staticmethod
    def forward(ctx, gatherers: Tensor, givers: Tensor, edges: Edges) -> Tensor:  # type: ignore[no-untyped-def]
        gatherers, givers = gatherers[None].contiguous(), givers[None].contiguous()
        passes = passes_for(gatherers, givers)
        assert passes is not None
        ones = givers.new_ones(1, edges.kinds, givers.shape[-1])
        out = givers.new_empty(len(edges))
        passes.to_weight(edges, givers, ones, gatherers, "product", out)
        ctx.save_for_backward(gatherers, givers, ones)
        ctx.edges, ctx.passes = edges, passes
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        gatherers, givers, ones = ctx.saved_tensors
        edges, passes, gradient = ctx.edges, ctx.passes, gradient.contiguous()
        to_gatherers, to_givers = torch.empty_like(gatherers), torch.empty_like(givers)
        passes.gather(edges.by_gatherer, gradient, givers, ones, "first", to_gatherers)
        rows = edges.by_giver
        passes.gather(rows, rows.ordered(gradient), gatherers, ones, "first", to_givers)
        return to_gatherers[0], to_givers[0], None
