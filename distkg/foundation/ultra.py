"""ULTRA: relations by how they meet, entities by the paths that lead to them (Galkin et al. 2024, arXiv 2310.04562).

Names of parameters are those of the published checkpoints.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from distkg.foundation.base import MODELS, FoundationModel, ModelOptions
from distkg.foundation.graph import Facts, KnowledgeGraph
from distkg.foundation.layers import Boundary, Convolution, Layers, of_layer
from distkg.graph.relation_graph import KINDS
from distkg.kernels.edges import Edges


class MeetingConvolution(Convolution):
    """Over the graph of relations: each way of meeting has a vector of the layer's own."""

    def __init__(self, width: int, kinds: int) -> None:
        super().__init__(width)
        self.relation = nn.Embedding(kinds, width)

    def vectors(self) -> Tensor:
        """Of the ways of meeting: float32 [1, kinds, d]."""
        return self.relation.weight[None]


class FactConvolution(Convolution):
    """Over facts: a relation's vector is made of its state by a small network of the layer's own."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__(width)
        self.relation_projection = nn.Sequential(nn.Linear(states, width), nn.ReLU(), nn.Linear(width, width))

    def vectors(self, relations: Tensor) -> Tensor:
        """Of relations with states float32 [B, 2R, d]: float32 [B, 2R, width]."""
        found: Tensor = self.relation_projection(relations)
        return found


class RelationEncoder(nn.Module):
    """Six layers over the graph of relations, from ones at the relation of the query."""

    def __init__(self, width: int, layers: int, kinds: int = len(KINDS)) -> None:
        super().__init__()
        self.layers: Layers[MeetingConvolution] = Layers(MeetingConvolution(width, kinds) for _ in range(layers))
        self._width = width

    def forward(self, meetings: Edges, relation: Tensor) -> Tensor:
        """float32 [B, 2R, d] of relations int64 [B]."""
        boundary = Boundary(relation, torch.ones(len(relation), self._width, device=relation.device))
        states = boundary.states(meetings.nodes)
        for layer in self.layers:
            states = layer(states, layer.vectors(), meetings, boundary, None)
        return states


class EntityDecoder(nn.Module):
    """Layers over facts, from the state of the query's relation at the anchor; then a score of each entity."""

    def __init__(self, width: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.layers: Layers[FactConvolution] = Layers(FactConvolution(width, width) for _ in range(layers))
        self.mlp = ReadOut(width, hidden)

    def features(
        self, facts: Edges, relations: Tensor, anchor: Tensor, relation: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Last states of all entities, float32 [B, N, d], and the vector of each query, float32 [B, d]."""
        query = relations[torch.arange(len(relation), device=relation.device), relation]
        boundary = Boundary(anchor, query)
        states = boundary.states(facts.nodes)
        for number, layer in enumerate(self.layers):
            states = layer(states, layer.vectors(relations), facts, boundary, of_layer(weight, number))
        return states, query

    def forward(
        self,
        facts: Edges,
        relations: Tensor,
        anchor: Tensor,
        relation: Tensor,
        weight: Tensor | None,
        candidates: Tensor | None = None,
    ) -> Tensor:
        """float32 [B, N] or [B, m]; ``relations`` float32 [B, 2R, d] are the encoder's states."""
        states, query = self.features(facts, relations, anchor, relation, weight)
        if candidates is not None:
            states = states.gather(1, candidates[..., None].expand(-1, -1, states.shape[-1]))
        scores: Tensor = self.mlp(states, query)
        return scores


class ReadOut(nn.Sequential):
    """A score of each entity, from its state and the query's vector."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(2 * width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, states: Tensor, query: Tensor) -> Tensor:  # type: ignore[override]
        """float32 [B, N] of states [B, N, d] and queries [B, d]."""
        first, _, last = self
        assert isinstance(first, nn.Linear)
        of_state, of_query = first.weight.split(states.shape[-1], dim=1)
        # The query's part is the same for all entities.
        hidden = torch.relu(states @ of_state.T + (query @ of_query.T + first.bias)[:, None])
        found: Tensor = last(hidden)
        return found[..., 0]


class UltraOptions(ModelOptions):
    width: int = Field(64, ge=1, description="Numbers of a state.")
    layers: int = Field(6, ge=1, description="Layers over relations, and as many over facts.")
    hidden: int = Field(128, ge=1, description="Width of the hidden layer of the read-out.")


@MODELS.register("ultra")
class Ultra(FoundationModel):
    """168,705 parameters with the published sizes.

    The relation encoder is always asked for the relation itself, never its inverse: so the checkpoints were trained.
    """

    Options = UltraOptions
    name = "ultra"

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        assert isinstance(options, UltraOptions)
        self.relation_model = RelationEncoder(options.width, options.layers)
        self.entity_model = EntityDecoder(options.width, options.layers, options.hidden)

    @property
    def depth(self) -> int:
        return len(self.entity_model.layers)

    def relation_states(
        self, graph: KnowledgeGraph, anchor: Tensor, relation: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        direct, place = torch.unique(relation % graph.relations, return_inverse=True)
        states: Tensor = self.relation_model(graph.meetings, direct)
        # Unlike that of indexing, the gradient is summed in a fixed order by CPU's threads.
        return states.index_select(0, place)

    def scores(
        self,
        graph: Facts,
        states: Tensor,
        anchor: Tensor,
        relation: Tensor,
        weight: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> Tensor:
        found: Tensor = self.entity_model(graph.facts, states, anchor, relation, weight, candidates)
        return found
