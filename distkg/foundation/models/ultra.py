"""ULTRA: relations from the ways in which they meet, entities from the paths that lead to them (Galkin et al. 2024,
arXiv 2310.04562).

Names of parameters are those of the published checkpoints.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from distkg.foundation.base import MODELS, ModelOptions
from distkg.foundation.graphs.knowledge_graph import KnowledgeGraph
from distkg.foundation.layers.path_decoder import EntityDecoder, PathModel
from distkg.foundation.layers.relational import Boundary, Convolution, Layers
from distkg.graph.relation_graph import KINDS
from distkg.kernels.message_passing.edges import Edges


class MeetingConvolution(Convolution):
    """Convolution over the graph of relations, with a vector for each way of meeting."""

    def __init__(self, width: int, kinds: int) -> None:
        super().__init__(width)
        self.relation = nn.Embedding(kinds, width)

    def vectors(self) -> Tensor:
        """Return the vectors of the ways of meeting: float32 [1, kinds, d]."""
        return self.relation.weight[None]


class RelationEncoder(nn.Module):
    """Layers over the graph of relations; the initial state is one at the relation of the query and zero elsewhere."""

    def __init__(self, width: int, layers: int, kinds: int = len(KINDS)) -> None:
        super().__init__()
        self.layers: Layers[MeetingConvolution] = Layers(MeetingConvolution(width, kinds) for _ in range(layers))
        self._width = width

    def forward(self, meetings: Edges, relation: Tensor) -> Tensor:
        """Return the relation states float32 [B, 2R, d] for queries of relations int64 [B]."""
        boundary = Boundary(relation, torch.ones(len(relation), self._width, device=relation.device))
        states = boundary.states(meetings.nodes)
        for layer in self.layers:
            states = layer(states, layer.vectors(), meetings, boundary, None)
        return states


class UltraOptions(ModelOptions):
    width: int = Field(64, ge=1, description="Dimension of entity and relation states.")
    layers: int = Field(
        6, ge=1, description="Number of layers of the relation encoder; the entity decoder has as many."
    )
    hidden: int = Field(128, ge=1, description="Width of the hidden layer of the output network.")


@MODELS.register("ultra")
class Ultra(PathModel):
    """ULTRA model; 168,705 parameters with the published sizes.

    The relation encoder receives the relation itself and never its inverse, as in the training of the checkpoints.
    """

    Options = UltraOptions
    name = "ultra"
    relations_by_facts = False

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        assert isinstance(options, UltraOptions)
        self.relation_model = RelationEncoder(options.width, options.layers)
        self.entity_model = EntityDecoder(options.width, options.layers, options.hidden)

    def relation_states(
        self, graph: KnowledgeGraph, anchor: Tensor, relation: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        direct, place = torch.unique(relation % graph.relations, return_inverse=True)
        states: Tensor = self.relation_model(graph.meetings, direct)
        # CPU threads sum the gradient of index_select in a fixed order, unlike the gradient of indexing.
        return states.index_select(0, place)

    def encoding_keys(self, graph: KnowledgeGraph, relation: Tensor) -> Tensor | None:
        return relation % graph.relations
