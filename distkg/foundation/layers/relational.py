"""Convolution layer of ULTRA and its relatives (Galkin et al. 2024, arXiv 2310.04562; Zhu et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.large_tensors import empty
from distkg.kernels.message_passing.layer_inference import (
    infer_first_layer,
    infer_layer,
    infer_mlp,
    runs_without_gradients,
)
from distkg.kernels.message_passing.layer_update import layer_update
from distkg.kernels.message_passing.sums import propagate

L = TypeVar("L", bound=nn.Module)


class Layers(nn.ModuleList, Generic[L]):
    """List of layers of a known type."""

    def __iter__(self) -> Iterator[L]:
        return super().__iter__()  # type: ignore[return-value]


class Mlp(nn.Sequential):
    """Network of two linear maps with a ReLU between them."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))

    def forward(self, inputs: Tensor, fixed: Tensor | None = None) -> Tensor:
        """Return float32 [B, n, out] of inputs float32 [B, n, d]; ``fixed`` float32 [width - d] are further numbers,
        the same for every row."""
        first, _, last = self
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        weight, bias = first.weight, first.bias
        if fixed is not None:
            weight, of_fixed = weight.split(inputs.shape[-1], dim=1)
            bias = bias + of_fixed @ fixed
        parameters = weight, bias, last.weight, last.bias
        if inputs.ndim > 2 and runs_without_gradients(inputs.shape[1], inputs, *parameters):
            return infer_mlp(inputs, *parameters)
        out: Tensor = last(torch.relu(F.linear(inputs, weight, bias)))
        return out


class Convolution(nn.Module):
    """Layer that turns states x into x + ReLU(LayerNorm(W [x, a])), where a is the sum of a node's messages and its
    boundary condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, width)
        self.layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        states: Tensor,
        relations: Tensor,
        edges: Edges,
        boundary: Boundary | FullBoundary,
        weight: Tensor | None,
        place: Tensor | None = None,
    ) -> Tensor:
        """Return the states float32 [B, n, d] after this layer; arguments as of ``propagate``."""
        if self._runs_without_gradients(edges, states, relations, weight):
            return infer_layer(states, relations, place, edges, weight, boundary.add_to_block, self._weights)
        gathered = propagate(states, relations, edges, weight, place=place)
        return self.update(states, boundary.add_to(gathered), residual=True)

    def start(
        self, boundary: Boundary, relations: Tensor, edges: Edges, weight: Tensor | None, place: Tensor | None = None
    ) -> Tensor:
        """Return the states float32 [B, n, d] after this layer, of states that are the boundary condition; arguments as
        of ``propagate``."""
        if self._runs_without_gradients(edges, boundary.vector, relations, weight):
            start = boundary.node, boundary.vector
            return infer_first_layer(*start, relations, place, edges, weight, self._weights)
        states: Tensor = self(boundary.states(edges.nodes), relations, edges, boundary, weight, place)
        return states

    def _runs_without_gradients(self, edges: Edges, states: Tensor, relations: Tensor, weight: Tensor | None) -> bool:
        weights = [] if weight is None else [weight]
        return runs_without_gradients(edges.nodes, states, relations, *self._weights, *weights)

    @property
    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.linear.weight, self.linear.bias, self.layer_norm.weight, self.layer_norm.bias

    def update(self, states: Tensor, gathered: Tensor, *, residual: bool) -> Tensor:
        """Return the states of the layer, or their update without the residual: float32 [B, n, d]; ``gathered`` are the
        sums a."""
        return layer_update(states, gathered, *self._weights, residual)


def of_query(states: Tensor, relation: Tensor, place: Tensor | None = None) -> Tensor:
    """Return the state of each query's own relation: float32 [B, d].

    Args:
        states: float32 [B, n, d], or [D, n, d] with ``place`` int64 [B], the row of each query.
        relation: int64 [B].
    """
    return states[torch.arange(len(relation), device=relation.device) if place is None else place, relation]


def of_each(states: Tensor, place: Tensor | None) -> Tensor:
    """Return states of each query, [B, …], of states [D, …] and the row of each query, ``place`` int64 [B]; None for
    states [B, …]."""
    return states if place is None else states.index_select(0, place)


def inverted(states: Tensor) -> Tensor:
    """Return states [B, 2R, d] with the rows of each relation and of its inverse exchanged."""
    return states.roll(states.shape[1] // 2, dims=1)


def of_layer(weight: Tensor | None, layer: int) -> Tensor | None:
    """Return the weights of one layer, of weights that may differ from layer to layer."""
    return weight[layer] if weight is not None and weight.ndim == 2 else weight


class Boundary:
    """Boundary condition of each query: a vector at one node, zero at all others.

    Attributes:
        node: int64 [B].
        vector: float32 [B, d].
    """

    def __init__(self, node: Tensor, vector: Tensor) -> None:
        self.node, self.vector = node, vector
        self._batch = torch.arange(len(node), device=node.device)

    def states(self, nodes: int) -> Tensor:
        """Return the condition as states of all nodes: float32 [B, nodes, d]."""
        return self.add_to(empty(self.vector, len(self.node), nodes, self.vector.shape[1]).zero_())

    def add_to(self, states: Tensor) -> Tensor:
        """Add the condition to states float32 [B, n, d], in place because states are large."""
        return states.index_put_((self._batch, self.node), self.vector, accumulate=True)

    def add_to_block(self, states: Tensor, query: int, low: int) -> None:
        """Add the condition of a query to the states of nodes from ``low`` on, float32 [m, d], in place."""
        place = int(self.node[query]) - low
        if 0 <= place < len(states):
            states[place] += self.vector[query]


class FullBoundary:
    """Boundary condition on every node.

    Attributes:
        vectors: float32 [B, n, d], or [1, n, d] for all queries alike.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    def add_to(self, states: Tensor) -> Tensor:
        """Add the condition to states float32 [B, n, d], in place."""
        return states.add_(self.vectors)

    def add_to_block(self, states: Tensor, query: int, low: int) -> None:
        """Add the condition of a query to the states of nodes from ``low`` on, float32 [m, d], in place."""
        states += self.vectors[query if len(self.vectors) > 1 else 0, low : low + len(states)]
