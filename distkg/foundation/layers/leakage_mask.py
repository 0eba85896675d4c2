"""Hiding of relation-graph edges together with facts: two relations no longer meet in an entity if the last fact of one
of them there is hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.foundation.graphs.knowledge_graph import KnowledgeGraph
from distkg.graph.directions import inverse_of, query_keys
from distkg.kernels.message_passing.edges import Edges

# Way of meeting → whether the entity is the tail of the first and of the second relation.
AS_TAILS = {
    "head to head": (False, False),
    "tail to tail": (True, True),
    "head to tail": (False, True),
    "tail to head": (True, False),
}


def weights_of_meetings(graph: KnowledgeGraph, meetings: dict[str, Edges], weight: Tensor) -> dict[str, Tensor]:
    """Return the weights of the edges of ``KnowledgeGraph.meetings_in_entities`` for given fact weights: float32
    [edges] by way of meeting, 0 where an entity has no visible fact of one of the two relations, and 1 elsewhere.

    Args:
        weight: float32 [E] of the facts, 0 where hidden.
    """
    lost = _lost(graph, weight)
    weights = {}
    for way, on_host in meetings.items():
        edges = on_host.to(weight.device)
        entity = edges.relation
        is_hidden = torch.zeros(len(edges), dtype=torch.bool, device=weight.device)
        for relation, as_tail in zip((edges.dst, edges.src), AS_TAILS[way], strict=True):
            as_head = inverse_of(relation, graph.relations) if as_tail else relation
            is_hidden |= torch.isin(query_keys(entity, as_head, graph.relations), lost)
        weights[way] = (~is_hidden).float()
    return weights


def _lost(graph: KnowledgeGraph, weight: Tensor) -> Tensor:
    """Return the pairs of entity and relation all of whose facts are hidden, with the entity as head: int64, entity *
    2R + relation."""
    facts = graph.facts.to(weight.device)
    pairs = query_keys(facts.dst, facts.relation, graph.relations)
    hidden, seen = pairs[weight == 0].unique(), pairs[weight != 0]
    return hidden[~torch.isin(hidden, seen)]
