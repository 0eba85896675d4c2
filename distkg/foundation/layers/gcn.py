"""Graph convolutions over one graph: entity vectors, layers over facts, and a shallow decoder.

They are not foundation models: a model serves the graph that it was trained on alone, and is a baseline for models
without entity vectors. States do not depend on the query, so a batch costs one pass over the facts.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distkg.foundation.base import FoundationModel, GraphMismatchError, ModelOptions
from distkg.foundation.graphs.knowledge_graph import Facts, KnowledgeGraph
from distkg.foundation.layers.relational import of_layer, of_query
from distkg.kernels.message_passing.edges import Edges

Decoder = Literal["distmult", "transe"]


class GcnOptions(ModelOptions):
    entities: int = Field(0, ge=0, description="Number of entities of the graph; set from the store of the run.")
    relations: int = Field(
        0, ge=0, description="Number of relations of the graph, without inverses; set from the store of the run."
    )
    width: int = Field(64, ge=1, description="Dimension of entity and relation vectors.")
    layers: int = Field(2, ge=1, description="Number of layers over facts.")
    decoder: Decoder = Field(
        "distmult",
        description="Score of anchor a, relation r and entity e: distmult (the sum of a r e) or transe (minus the L1 "
        "norm of a + r - e).",
    )


class GraphConvolutionModel(FoundationModel):
    """Base class of models with entity vectors, layers over facts, and a decoder."""

    knows_relations = knows_entities = True

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        assert isinstance(options, GcnOptions)
        self._sizes = options
        self.entity = vectors(options.entities, options.width)

    @abstractmethod
    def relations(self) -> Tensor:
        """Return the vectors of relations and their inverses for the decoder: float32 [2R, d]."""

    @abstractmethod
    def encoded(self, facts: Edges, weight: Tensor | None) -> Tensor:
        """Return the vectors of entities for the decoder: float32 [N, d]; ``weight`` as of ``scores``."""

    @property
    def depth(self) -> int:
        return self._sizes.layers

    def relation_states(
        self, graph: KnowledgeGraph, anchor: Tensor, relation: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        sizes = self._sizes
        if (graph.entities, graph.relations) != (sizes.entities, sizes.relations):
            raise GraphMismatchError(
                f"{self.name} was made for {sizes.entities:,} entities and {sizes.relations:,} relations, and this "
                f"graph has {graph.entities:,} and {graph.relations:,}: it has vectors for those of its own graph "
                "alone. For other graphs use ultra or trix"
            )
        return self.relations().expand(len(relation), -1, -1)

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
        if not isinstance(graph, KnowledgeGraph):
            raise GraphMismatchError(
                f"{self.name} knows the entities of a whole graph by their ids, which a sampled part has not. Use the "
                "whole graph (empty data.fanouts), or ultra or trix"
            )
        entities = self.encoded(graph.facts, weight)
        own = of_query(states, relation, place)
        if self._sizes.decoder == "transe":
            query = entities[anchor] + own
            if candidates is None:
                return -torch.cdist(query, entities, p=1)
            return -(query[:, None] - entities[candidates]).abs().sum(-1)
        query = entities[anchor] * own
        if candidates is None:
            return query @ entities.T
        return torch.einsum("bd,bmd->bm", query, entities[candidates])


def vectors(count: int, width: int) -> nn.Parameter:
    """Return ``count`` vectors with Glorot's variance: float32 [count, width]."""
    return nn.Parameter(nn.init.xavier_normal_(torch.empty(count, width)))


def mean_weight(edges: Edges, weight: Tensor | None, layer: int) -> Tensor:
    """Return the edge weights of a layer with which a sum over an entity's edges is their mean: float32 [E]. Edges of
    weight 0 do not count."""
    own = of_layer(weight, layer)
    shares = 1 / edges.degrees(own).clamp_min(1)[edges.dst.long()]
    return shares if own is None else own * shares.to(own.device)
