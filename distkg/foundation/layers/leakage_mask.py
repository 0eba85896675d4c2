"""Hiding of meetings together with facts: two relations no longer meet in an entity if the last fact of one of them
there is hidden."""

from __future__ import annotations

from torch import Tensor, isin

from distkg.foundation.graphs.knowledge_graph import KnowledgeGraph
from distkg.graph.directions import query_keys
from distkg.kernels.message_passing.incidence import Incidence


def weights_of_meetings(graph: KnowledgeGraph, meetings: Incidence, weight: Tensor) -> Tensor:
    """Return the weights of the pairs of ``KnowledgeGraph.meetings_in_entities`` for given fact weights: float32 [P], 0
    where an entity has no visible fact of the relation, and 1 elsewhere.

    Args:
        weight: float32 [E] of the facts, 0 where hidden.
    """
    here = meetings.to(weight.device)
    pairs = query_keys(here.entity.long(), here.relation.long(), graph.relations)
    return (~isin(pairs, _lost(graph, weight))).float()


def _lost(graph: KnowledgeGraph, weight: Tensor) -> Tensor:
    """Return the pairs of entity and relation all of whose facts are hidden, with the entity as head: int64, entity *
    2R + relation."""
    facts, hidden = graph.facts.to(weight.device), weight == 0
    pairs = query_keys(facts.dst, facts.relation, graph.relations)
    candidates, seen = pairs[hidden].unique(), pairs[~hidden]
    return candidates[~isin(candidates, seen)]
