"""What else goes with facts that are hidden: relations no longer meet in an entity whose last fact of one is gone."""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.foundation.graphs.knowledge_graph import KnowledgeGraph
from distkg.graph.directions import inverse_of, query_keys
from distkg.kernels.message_passing.edges import Edges

# Of each way of meeting: whether its first and its second relation are met as tails.
AS_TAILS = {
    "head to head": (False, False),
    "tail to tail": (True, True),
    "head to tail": (False, True),
    "tail to head": (True, False),
}


def weights_of_meetings(graph: KnowledgeGraph, meetings: dict[str, Edges], weight: Tensor) -> dict[str, Tensor]:
    """Weights of ``KnowledgeGraph.meetings_in_entities`` that go with weights of facts: float32 [edges] by way, 0 where
    an entity has no fact left of one of the two relations, and 1 elsewhere.

    Args:
        weight: float32 [E] of the facts, 0 where hidden.
    """
    lost = _lost(graph, weight)
    found = {}
    for way, edges in meetings.items():
        entity = edges.relation
        gone = torch.zeros(len(edges), dtype=torch.bool)
        for relation, as_tail in zip((edges.dst, edges.src), AS_TAILS[way], strict=True):
            as_head = inverse_of(relation, graph.relations) if as_tail else relation
            gone |= torch.isin(query_keys(entity, as_head, graph.relations), lost)
        found[way] = (~gone).float()
    return found


def _lost(graph: KnowledgeGraph, weight: Tensor) -> Tensor:
    """Entities and relations, as heads, that were in facts which are all hidden: int64, entity * 2R + relation."""
    facts = graph.facts
    pairs = query_keys(facts.dst, facts.relation, graph.relations)
    hidden, seen = pairs[weight == 0].unique(), pairs[weight != 0]
    return hidden[~torch.isin(hidden, seen)]
