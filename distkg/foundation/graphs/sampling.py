"""Scores from a sampled part of a graph around anchors and candidates, for graphs that are too large to read whole.

An entity outside the part has the state, and so the score, of a node without facts, which is computed beside the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from distkg.foundation.base import FoundationModel
from distkg.foundation.graphs.entity_tokens import Tokens, tokens_of_part
from distkg.foundation.graphs.knowledge_graph import KnowledgeGraph
from distkg.graph.directions import inverse_of
from distkg.graph.neighbourhoods import DglSampler, EdgeSampler, PlainSampler
from distkg.kernels.message_passing.edges import Edges

Sampler = Literal["compiled", "dgl"]
_SAMPLERS: dict[Sampler, Callable[[np.ndarray, np.ndarray, int], EdgeSampler]] = {
    "compiled": PlainSampler,
    "dgl": DglSampler,
}


@dataclass(frozen=True)
class Subgraph:
    """Part of a graph on CPU with its entities renumbered; its last node has no facts.

    Attributes:
        nodes: int64 [m], sorted: ids of its entities in the graph.
        facts: edges between the m + 1 nodes.
        chosen: int64 [E'], sorted: indices of the edges in the graph's facts.
        tokens: tokens of the m + 1 nodes; the last has none.
    """

    nodes: Tensor
    relations: int
    facts: Edges
    chosen: Tensor
    tokens: Tokens = field(default_factory=dict)

    @property
    def entities(self) -> int:
        return len(self.nodes) + 1

    def place(self, entities: Tensor) -> Tensor:
        """Return the node indices of entities of the graph, on their device; entities outside get the index of the
        node without facts."""
        nodes = self.nodes.to(entities.device)
        place = torch.searchsorted(nodes, entities.contiguous()).clamp_max(max(len(nodes) - 1, 0))
        inside = (nodes[place] == entities) if len(nodes) else torch.zeros_like(entities, dtype=torch.bool)
        return torch.where(inside, place, len(nodes))


class SubgraphSampler:
    """Sampler of the neighbourhoods of entities in a graph."""

    def __init__(self, graph: KnowledgeGraph, fanouts: Sequence[int], sampler: Sampler = "compiled") -> None:
        """Create a sampler; ``fanouts`` as of ``EdgeSampler``, from anchors (and candidates) outwards."""
        self._graph, self._fanouts = graph, list(fanouts)
        facts = graph.facts
        self._sample = _SAMPLERS[sampler](facts.src.numpy(), facts.dst.numpy(), facts.nodes)

    @classmethod
    def where_wanted(
        cls, graph: KnowledgeGraph, fanouts: Sequence[int], sampler: Sampler = "compiled"
    ) -> SubgraphSampler | None:
        """Return a sampler, or None without fan-outs, when models read the graph whole."""
        return cls(graph, fanouts, sampler) if fanouts else None

    def of(self, entities: Tensor, seed: int) -> Subgraph:
        """Sample the subgraph around entities int64 [s]. Every sampled fact is included in both directions."""
        facts, graph, entities = self._graph.facts, self._graph, entities.cpu()
        sampled = torch.from_numpy(self._sample(entities.unique().numpy(), self._fanouts, seed))
        dst, kind, src = (side[sampled].long() for side in (facts.dst, facts.relation, facts.src))
        chosen = torch.cat([sampled, graph.places_of(src, inverse_of(kind, graph.relations), dst)]).unique()
        sides = [side[chosen].long() for side in (facts.dst, facts.relation, facts.src)]
        nodes = torch.cat([sides[0], sides[2], entities]).unique()
        place = torch.searchsorted
        edges = Edges.of(place(nodes, sides[0]), sides[1], place(nodes, sides[2]), len(nodes) + 1, facts.num_relations)
        tokens = tokens_of_part(graph.tokens, nodes, strangers=1)
        return Subgraph(nodes, graph.relations, edges, chosen, tokens)


@torch.no_grad()
def sampled_scores(
    model: FoundationModel,
    graph: KnowledgeGraph,
    surroundings: SubgraphSampler,
    anchor: Tensor,
    relation: Tensor,
    candidates: Tensor | None = None,
    seed: int = 0,
    states: tuple[Tensor, Tensor | None] | None = None,
) -> Tensor:
    """Return scores of all entities, float32 [B, N], from the facts around anchors and ``candidates`` int64 [c].

    ``states`` are the relation states of the queries, and ``place``, as of ``FoundationModel.scores``; None to compute
    them.
    """
    around = anchor if candidates is None else torch.cat([anchor, candidates])
    part = surroundings.of(around, seed)
    relations, place = states or (model.relation_states(graph, anchor, relation), None)
    local = model.scores(part, relations, part.place(anchor), relation, place=place)
    scores = local[:, -1:].repeat(1, graph.entities)
    scores[:, part.nodes.to(scores.device)] = local[:, :-1]
    return scores
