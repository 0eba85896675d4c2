"""TRIX: relations from the entities in which they meet, refined in alternation with entities (Zhang et al., LoG 2024).

Names of parameters are those of the published checkpoint, except for two networks that its code has since renamed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distkg.foundation.base import MODELS, ModelOptions
from distkg.foundation.graphs.knowledge_graph import KnowledgeGraph
from distkg.foundation.layers.path_decoder import EntityDecoder, FactConvolution, PathModel
from distkg.foundation.layers.relational import Boundary, FullBoundary, Layers, inverted
from distkg.kernels.message_passing.incidence import Incidence, propagate_meetings

WAYS = {"hh": (False, False), "ht": (False, True), "th": (True, False), "tt": (True, True)}
"""Way of meeting → whether the entity is the tail of the gathering relation, and of the other one."""


class TrixOptions(ModelOptions):
    width: int = Field(32, ge=1, description="Dimension of entity and relation states.")
    relation_layers: int = Field(3, ge=1, description="Number of layers of the relation encoder.")
    small_layers: int = Field(
        2, ge=1, description="Number of layers of the small entity network between relation layers."
    )
    layers: int = Field(4, ge=1, description="Number of layers of the entity decoder.")
    hidden: int = Field(64, ge=1, description="Width of the hidden layer of the output network.")
    most_per_entity: int | None = Field(
        None,
        ge=1,
        description="Maximum number of relations of one entity in the relation graph; null for all.",
    )


class MeetingLayers(nn.Module):
    """Layers over the four graphs of relations that meet; the message of an edge depends on the state of its entity."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers_hh, self.layers_ht, self.layers_th, self.layers_tt = (
            Layers[FactConvolution](FactConvolution(width, width) for _ in range(layers)) for _ in WAYS
        )

    def layer(
        self,
        number: int,
        meetings: Incidence,
        states: Tensor,
        nodes: Tensor,
        boundary: Boundary | FullBoundary,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the relation states after layer ``number``: float32 [B, 2R, d].

        Args:
            states: float32 [B, 2R, d], relation states.
            nodes: float32 [B, N, d], entity states; [1, N, d] if they are those of all queries.
            weights: float32 [P], weights of ``meetings``; None for weights of 1.
        """
        # An entity is the tail of a relation where it is the head of the inverse.
        by_head, update = {False: states, True: inverted(states)}, torch.zeros_like(states)
        for way, (is_tail, of_tail) in WAYS.items():
            convolution: FactConvolution = getattr(self, f"layers_{way}")[number]
            factors, with_itself = convolution.vectors(nodes), is_tail != of_tail
            gathered = propagate_meetings(by_head[of_tail], factors, meetings, weights, with_itself=with_itself)
            own = boundary.add_to(inverted(gathered) if is_tail else gathered)
            update = update + convolution.update(states, own, residual=False)
        return states + update


class RelationEncoder(MeetingLayers):
    """Relation layers of TRIX, and the network that makes the entity states for layers after the first."""

    def __init__(self, options: TrixOptions) -> None:
        super().__init__(options.width, options.relation_layers)
        self.node_mlp = nn.Linear(2 * options.width, options.width)


@MODELS.register("trix")
class Trix(PathModel):
    """TRIX model that ranks entities; 87,138 parameters with the published sizes."""

    Options = TrixOptions
    name = "trix"

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        assert isinstance(options, TrixOptions)
        self._sizes = options
        self.relation_model = RelationEncoder(options)
        self.entity_model_mini = EntityDecoder(options.width, options.small_layers, options.hidden)
        self.entity_model = EntityDecoder(options.width, options.layers, options.hidden)

    def relation_states(
        self, graph: KnowledgeGraph, anchor: Tensor, relation: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        sizes, encoder = self._sizes, self.relation_model
        meetings = graph.meetings_in_entities(sizes.most_per_entity)
        # Until facts are read, the states of all queries of a relation are the same.
        distinct, place = torch.unique(relation % graph.relations, return_inverse=True)
        boundary = Boundary(distinct, torch.ones(len(distinct), sizes.width, device=relation.device))
        nodes = torch.ones(1, graph.entities, sizes.width, device=relation.device)
        states = encoder.layer(0, meetings, boundary.states(2 * graph.relations), nodes, boundary)
        states = states.index_select(0, place)
        features, query = self.entity_model_mini.features(graph.facts, states, anchor, relation, weight)
        of_features, of_query = encoder.node_mlp.weight.split(sizes.width, dim=1)
        nodes = F.linear(features, of_features) + F.linear(query, of_query, encoder.node_mlp.bias)[:, None]
        boundary = Boundary(relation % graph.relations, torch.ones(len(relation), sizes.width, device=relation.device))
        for number in range(1, sizes.relation_layers):
            states = encoder.layer(number, meetings, states, nodes, boundary)
        return states
