"""Surroundings of example facts, and how far each entity in them is from the example's two ends.

What KG-ICL (Cui et al. 2024, arXiv 2410.12288) calls a prompt graph: facts of a relation, and what lies around them, say
in any graph what the relation means, without its name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distkg.graph.neighbourhoods import EdgeSampler


@dataclass(frozen=True)
class Surrounding:
    """A part of a graph around one example, its nodes numbered anew: 0 is the head, 1 the tail.

    Attributes:
        nodes: int64 [m], the entities.
        edges: int64 [e], places of edges in the arrays that the sampler was made of.
        source, target: int64 [e], the ends of these edges, as numbers here.
        from_head, from_tail: int64 [m], steps from either end, ``hops`` + 1 at most.
    """

    nodes: NDArray[np.int64]
    edges: NDArray[np.int64]
    source: NDArray[np.int64]
    target: NDArray[np.int64]
    from_head: NDArray[np.int64]
    from_tail: NDArray[np.int64]


def surrounding(
    head: int,
    tail: int,
    sampler: EdgeSampler,
    source: NDArray[np.int64],
    target: NDArray[np.int64],
    hidden: NDArray[np.bool_] | None = None,
    *,
    hops: int = 3,
    fanout: int = 10,
    seed: int = 0,
) -> Surrounding:
    """What lies within ``hops`` steps of the ends of a fact, ``fanout`` edges of a node at each step.

    Args:
        source, target: int64 [E], of the edges that ``sampler`` was made of, which lead both ways.
        hidden: bool [E], edges that must not be seen; None for none.
        seed: decides which edges.
    """
    ends = np.array([head, tail])
    edges = sampler(np.unique(ends), [fanout] * hops, seed)
    if hidden is not None:
        edges = edges[~hidden[edges]]
    nodes = np.concatenate([source[edges], target[edges]])
    nodes = np.concatenate([ends, np.setdiff1d(nodes, ends)])
    order = np.argsort(nodes, kind="stable")
    own_source, own_target = (order[np.searchsorted(nodes[order], side[edges])] for side in (source, target))
    if head == tail:  # a loop: both ends are one entity, numbered 0
        own_source[own_source == 1], own_target[own_target == 1] = 0, 0
    steps = [_steps_from(start, len(nodes), own_source, own_target, hops) for start in (0, 0 if head == tail else 1)]
    return Surrounding(nodes, edges, own_source, own_target, *steps)


def _steps_from(
    start: int, nodes: int, source: NDArray[np.int64], target: NDArray[np.int64], hops: int
) -> NDArray[np.int64]:
    """Least number of edges from a node, whichever way they point: int64 [nodes], ``hops`` + 1 where there are more."""
    steps = np.full(nodes, hops + 1)
    steps[start] = 0
    for step in range(hops):
        front = steps == step
        for here, there in ((source, target), (target, source)):
            reached = there[front[here]]
            steps[reached] = np.minimum(steps[reached], step + 1)
    return steps
