"""TRIX for relation prediction: ranks the relations between two entities (Zhang et al., LoG 2024).

It is a separate model from the TRIX that ranks entities and has a checkpoint of its own, whose parameter names it uses.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from distkg.foundation.base import MODELS, FoundationModel, ModelOptions
from distkg.foundation.graphs.knowledge_graph import Facts, KnowledgeGraph
from distkg.foundation.layers.leakage_mask import weights_of_meetings
from distkg.foundation.layers.path_decoder import FactConvolution
from distkg.foundation.layers.relational import FullBoundary, Layers, Mlp, of_layer
from distkg.foundation.models.trix import MeetingLayers
from distkg.kernels.message_passing.edges import Edges


class EntityLayers(nn.Module):
    """Layers over facts, and a network that makes new entity states from their output."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = Layers[FactConvolution](FactConvolution(width, width) for _ in range(layers))
        self.mlp = Mlp(2 * width, 2 * width, width)

    def forward(
        self, facts: Edges, states: Tensor, relations: Tensor, boundary: FullBoundary, weights: list[Tensor | None]
    ) -> Tensor:
        """Return entity states float32 [B, N, d] of states [B, N, d] and relations [B, 2R, d]; ``weights`` holds the
        fact weights of each layer."""
        for layer, weight in zip(self.layers, weights, strict=True):
            states = layer(states, layer.vectors(relations), facts, boundary, weight)
        # Ones replace the vector of the query's relation in TRIX, because the relation is the unknown.
        updated: Tensor = self.mlp(states, fixed=states.new_ones(states.shape[-1]))
        return updated


class TrixRelationsOptions(ModelOptions):
    width: int = Field(32, ge=1, description="Dimension of entity and relation states.")
    rounds: int = Field(
        3, ge=1, description="Number of rounds, each of which refines entity states and then relation states."
    )
    layers: int = Field(
        2, ge=1, description="Number of layers over facts in each round; as many layers over relations follow."
    )
    most_per_entity: int | None = Field(
        None,
        ge=1,
        description="Maximum number of relations of one entity in the relation graph; null for all.",
    )


@MODELS.register("trix_relations")
class TrixRelations(FoundationModel):
    """TRIX model that ranks relations; 147,489 parameters with the published sizes.

    The head of a question is marked with 1 and the tail with -1. A hidden fact is hidden from the relation graph too:
    if it was the last fact of its relation at an entity, the relation no longer meets others there. The published
    training keeps such meetings, a hint that a question about a missing fact does not have.
    """

    Options = TrixRelationsOptions
    name = "trix_relations"
    ranks = "relations"

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        assert isinstance(options, TrixRelationsOptions)
        self._sizes, width, layers = options, options.width, options.layers
        self.relation_model = Layers[MeetingLayers](MeetingLayers(width, layers) for _ in range(options.rounds))
        self.entity_model = Layers[EntityLayers](EntityLayers(width, layers) for _ in range(options.rounds))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    @property
    def depth(self) -> int:
        return self._sizes.rounds * self._sizes.layers

    def relation_scores(
        self, graph: KnowledgeGraph, head: Tensor, tail: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        sizes, batch = self._sizes, len(head)
        meetings = graph.meetings_in_entities(sizes.most_per_entity)
        hiding = weight is not None and weight.ndim == 1 and not bool(weight.all())
        meeting_weights = weights_of_meetings(graph, meetings, weight) if hiding and weight is not None else None
        nodes = self._ends(graph, head, tail)
        relations = torch.ones(batch, 2 * graph.relations, sizes.width, device=head.device)
        ends, everywhere = FullBoundary(nodes), FullBoundary(relations)
        weights = [of_layer(weight, number) for number in range(self.depth)]
        rounds = zip(self.entity_model, self.relation_model, strict=True)
        for number, (by_facts, by_meetings) in enumerate(rounds):
            own = weights[number * sizes.layers : (number + 1) * sizes.layers]
            nodes = by_facts(graph.facts, nodes, relations, ends, own)
            for layer in range(sizes.layers):
                relations = by_meetings.layer(layer, meetings, relations, nodes, everywhere, meeting_weights)
        scores: Tensor = self.mlp(relations[:, : graph.relations])
        return scores[..., 0]

    def _ends(self, graph: KnowledgeGraph, head: Tensor, tail: Tensor) -> Tensor:
        """Return the marks of head and tail, float32 [B, N, d]: 1 at the head, -1 at the tail, 0 elsewhere and where
        both are the same entity."""
        marks = torch.zeros(len(head), graph.entities, self._sizes.width, device=head.device)
        batch = torch.arange(len(head), device=head.device)
        marks[batch, head] += 1
        marks[batch, tail] -= 1
        return marks

    def relation_states(
        self, graph: KnowledgeGraph, anchor: Tensor, relation: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        raise self._cannot_rank("entities")

    def scores(
        self,
        graph: Facts,
        states: Tensor,
        anchor: Tensor,
        relation: Tensor,
        weight: Tensor | None = None,
        candidates: Tensor | None = None,
        place: Tensor | None = None,
    ) -> Tensor:
        raise self._cannot_rank("entities")
