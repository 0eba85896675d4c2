"""Layers and output networks without gradients, block by block of the entities of a query.

A layer with gradients keeps the sums of messages of a whole batch. Without gradients, the sums of a block of entities
go through the layer's update while they are in cache, and the hidden layer of the output network never exists for more
than a block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu
from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.large_tensors import empty
from distkg.kernels.message_passing.layer_update import blocks_of, normalise_parts, run_in_parts
from distkg.kernels.message_passing.messages import MESSAGE
from distkg.kernels.message_passing.sums import GATHERERS, for_each_part_of_edges
from distkg.kernels.products import product, product_plus

LEAST_NODES = 1024  # below, a block is so small that the calls take longer than a batch-wide layer


def runs_without_gradients(nodes: int, *tensors: Tensor) -> bool:
    """Return True if the functions of this module can compute the states of so many nodes from these tensors."""
    if nodes < LEAST_NODES or not on_cpu(*tensors) or torch.is_autocast_enabled("cpu"):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return all(tensor.dtype == torch.float32 for tensor in tensors)


def infer_first_layer(
    node: Tensor,
    vector: Tensor,
    relations: Tensor,
    place: Tensor | None,
    edges: Edges,
    weight: Tensor | None,
    parameters: tuple[Tensor, Tensor, Tensor, Tensor],
) -> Tensor:
    """Compute ``infer_layer`` of states that are zero but for one node of each query: float32 [B, n, d].

    All nodes that receive no message from that node have the same state, so the other edges are not read.

    Args:
        node, vector: int64 [B] and float32 [B, d], the node and its state, which is its boundary condition too.
        relations, place, edges, weight, parameters: as of ``infer_layer``.
    """
    (count, width), rows, out = vector.shape, edges.by_src, empty(vector, len(vector), edges.nodes, vector.shape[1])
    of_states, of_sums = (half.contiguous() for half in parameters[0].split(width, dim=1))
    for query in range(count):
        own = relations[query * int(len(relations) > 1) if place is None else int(place[query])]
        here = slice(*rows.offsets[int(node[query]) :][:2].tolist())
        messages = vector[query] * own[rows.second[here].long()]
        if weight is not None:
            order = here if rows.order is None else rows.order[here].long()
            messages = messages * weight[order, None]
        reached, at = torch.cat([node[query : query + 1], rows.first[here].long()]).unique(return_inverse=True)
        # One more row, without state and messages, is that of all other nodes.
        states, sums = vector.new_zeros(2, len(reached) + 1, width)
        states[at[0]] = vector[query]
        sums.index_add_(0, at[1:], messages)
        sums[at[0]] += vector[query]
        linear, updated = product_plus(sums, of_sums, product(states, of_states)), torch.empty_like(states)
        normalise_parts(states, linear, *parameters[1:], updated)
        out[query] = updated[-1]
        out[query, reached] = updated[:-1]
    return out


def infer_layer(
    states: Tensor,
    relations: Tensor,
    place: Tensor | None,
    edges: Edges,
    weight: Tensor | None,
    add_boundary: Callable[[Tensor, int, int], object],
    parameters: tuple[Tensor, Tensor, Tensor, Tensor],
) -> Tensor:
    """Compute the states after a layer with ``distmult`` messages: float32 [B, n, d], as ``layer_update`` of the sums
    of ``propagate``.

    Args:
        states, relations, place, edges, weight: as of ``propagate``.
        add_boundary: adds the boundary condition of a query to the sums of nodes from low on, float32 [m, d], in place;
            called with sums, query and low.
        parameters: weight W [d, 2d], bias b [d], and scale and shift of the layer norm [d].
    """
    (count, nodes, width), (matrix, bias, scale, shift) = states.shape, parameters
    of_states, of_sums = (half.contiguous() for half in matrix.split(width, dim=1))
    states, relations, rows = states.contiguous(), relations.contiguous(), edges.by_dst
    row = np.arange(count) * int(len(relations) > 1) if place is None else place.numpy()
    weight = torch.ones(len(edges)) if weight is None else weight
    graph = rows.first.numpy(), rows.second.numpy(), weight.detach().numpy()
    offsets, x, w = rows.offsets.numpy(), states.detach().numpy(), relations.detach().numpy()
    out, gather = empty(states), GATHERERS[MESSAGE["distmult"]]
    for query in range(count):
        for here in blocks_of(nodes, torch.get_num_threads()):
            low, high = here.start, here.stop
            sums, own = states.new_empty(high - low, width), offsets[low : high + 1]
            inputs, of_block = (*graph, x[query], w[row[query]]), sums.numpy()

            def work(_: int, first: int, last: int, own=own, inputs=inputs, sums=of_block) -> None:  # type: ignore[no-untyped-def]
                gather(own, *inputs, sums, first, last)

            for_each_part_of_edges(1, own, work)
            add_boundary(sums, query, low)
            block = states[query, here]
            linear = product_plus(sums, of_sums, product(block, of_states))
            normalise_parts(block, linear, bias, scale, shift, out[query, here])
    return out


def infer_mlp(inputs: Tensor, first: Tensor, bias: Tensor, second: Tensor, last_bias: Tensor) -> Tensor:
    """Compute V ReLU(W x + b) + c of every row: float32 [B, n, out].

    Args:
        inputs: x, float32 [B, n, d].
        first, bias: W [hidden, d] and b [hidden].
        second, last_bias: V [out, hidden] and c [out].
    """
    rows, first, second = inputs.reshape(-1, inputs.shape[-1]), first.contiguous(), second.contiguous()
    out = empty(inputs, *inputs.shape[:-1], len(second))
    flat = out.view(len(rows), len(second))
    for here in blocks_of(len(rows), torch.get_num_threads()):
        hidden = product(rows[here], first).add_(bias).relu_()
        torch.add(product(hidden, second), last_bias, out=flat[here])
    return out


def infer_scores(states: Tensor, of_state: Tensor, of_query: Tensor, last: Tensor, bias: Tensor) -> Tensor:
    """Compute ReLU(W x + q) · v + c for every entity: float32 [B, n].

    Args:
        states: x, float32 [B, n, d].
        of_state: W [hidden, d].
        of_query: q [B, hidden].
        last, bias: v [hidden] and c [1].
    """
    count, nodes, _ = states.shape
    scores, matrix = states.new_empty(count, nodes), of_state.contiguous()
    for query in range(count):
        for here in blocks_of(nodes, torch.get_num_threads()):
            hidden = product(states[query, here], matrix)
            run_in_parts(_score, (hidden, of_query[query], last, bias, scores[query, here]))
    return scores


@kernel
def _score(part, low, high, hidden, of_query, last, bias, out):  # type: ignore[no-untyped-def]
    none = np.float32(0)
    for i in range(low, high):
        total = bias[0]
        for c in range(hidden.shape[1]):
            value = hidden[i, c] + of_query[c]
            total += last[c] * (none if value <= none else value)  # NaN stays NaN
        out[i] = total
