"""Explanation of a model's answer: the paths from the anchor along which its score grows most.

The method is NBFNet's (Zhu et al. 2021, section 4.4): the gradient of the score with respect to the weight of every
edge in every layer, and the paths whose edges have the largest mean gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distkg.foundation.base import FoundationModel
from distkg.foundation.graphs.knowledge_graph import KnowledgeGraph
from distkg.graph.csr import expanded_ranges, grouped_by
from distkg.kernels.message_passing.edges import Edges

BEAM = 10  # paths kept for each entity and length


@dataclass(frozen=True)
class Path:
    """Path of facts.

    Attributes:
        importance: mean gradient of the score with respect to the weights of its edges.
        facts: int [length, 3], head, relation (without inverses), tail, from the anchor on.
    """

    importance: float
    facts: tuple[tuple[int, int, int], ...]


def edge_gradients(model: FoundationModel, graph: KnowledgeGraph, anchor: int, relation: int, answer: int) -> Tensor:
    """Return the gradient of the answer's score with respect to the weight of each fact in each layer: float32
    [layers, E] on CPU."""
    weight = torch.ones(model.depth, len(graph.facts), device=model.device, requires_grad=True)
    query = torch.tensor([anchor], device=model.device), torch.tensor([relation], device=model.device)
    candidates = torch.tensor([[answer]], device=model.device)
    with torch.enable_grad():
        states = model.relation_states(graph, *query).detach()
        score = model.scores(graph, states, *query, weight, candidates)
        (gradients,) = torch.autograd.grad(score.sum(), weight)
    return gradients.cpu()


def most_influential(gradients: Tensor, edges: Edges, anchor: int, answer: int, top: int = 3) -> list[Path]:
    """Return the best paths of any length up to the number of layers, best first; no path visits an entity twice.

    A beam search keeps ``BEAM`` paths to each entity at every length, so it may miss a path that begins badly.
    """
    relations = edges.num_relations // 2
    src, dst = edges.src.numpy(), edges.dst.numpy()
    # Paths so far: their entities, their sum, and the edge and the path before.
    trail, sums = np.array([[anchor]]), np.array([0.0])
    history: list[tuple[np.ndarray, np.ndarray]] = []
    paths: list[Path] = []
    offsets, by_src = grouped_by(src, edges.nodes)
    for length, gradient in enumerate(gradients.numpy(), start=1):
        at = trail[:, -1]
        before, position = expanded_ranges(offsets[at], offsets[at + 1])
        edge = by_src[position]
        new = np.ones(len(edge), np.bool_)
        for visited in trail.T:
            new &= visited[before] != dst[edge]
        edge, before = edge[new], before[new]
        total = sums[before] + gradient[edge]
        keep = _best_of_each(dst[edge], total)
        edge, before = edge[keep], before[keep]
        trail, sums = np.column_stack([trail[before], dst[edge]]), total[keep]
        history.append((edge, before))
        for place in np.flatnonzero(trail[:, -1] == answer):
            steps = _walked_back(history, int(place))
            facts = tuple(_fact(int(dst[e]), int(edges.relation[e]), int(src[e]), relations) for e in steps)
            paths.append(Path(float(sums[place]) / length, facts))
    return sorted(paths, key=lambda path: -path.importance)[:top]


def _best_of_each(node: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return the indices of the ``BEAM`` largest totals of each node."""
    order = np.lexsort((-total, node))
    starts = np.flatnonzero(np.diff(node[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return order[rank < BEAM]


def _walked_back(history: list[tuple[np.ndarray, np.ndarray]], place: int) -> list[int]:
    """Return the edges of the path at index ``place`` of the longest length, first edge first."""
    steps = []
    for edge, before in reversed(history):
        steps.append(int(edge[place]))
        place = int(before[place])
    return steps[::-1]


def _fact(dst: int, kind: int, src: int, relations: int) -> tuple[int, int, int]:
    return (dst, kind, src) if kind < relations else (src, kind - relations, dst)


def in_words(path: Path, anchor: int, entities: dict[int, str], relations: dict[int, str]) -> str:
    """Format a path as ``anchor ←relation— x —relation→ answer``, with arrows in the direction of the facts.

    >>> path = Path(0.5, ((1, 0, 0), (1, 1, 2)))
    >>> in_words(path, 0, {0: "a", 1: "b", 2: "c"}, {0: "parent", 1: "friend"})
    'a ←parent— b —friend→ c'
    """
    words, now = entities[anchor], anchor
    for head, relation, tail in path.facts:
        now, arrow = (tail, f"—{relations[relation]}→") if head == now else (head, f"←{relations[relation]}—")
        words += f" {arrow} {entities[now]}"
    return words
