"""Graph convolutions over one graph: entities have vectors of their own, and a shallow decoder scores what comes out.

No foundation models: they serve the graph that they were trained on alone, as peers to those that do without vectors.
Their states do not depend on the query, so that a batch costs one pass over the facts.
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
    entities: int = Field(0, ge=0, description="Of the graph; a run takes it from its store.")
    relations: int = Field(0, ge=0, description="Of the graph, without inverses; a run takes it from its store.")
    width: int = Field(64, ge=1, description="Numbers of an entity's and a relation's vector.")
    layers: int = Field(2, ge=1, description="Layers over facts.")
    decoder: Decoder = Field(
        "distmult",
        description="Of anchor a, relation r and entity e: the sum of a r e, or minus the L1 norm of a + r - e.",
    )


class GraphConvolutionModel(FoundationModel):
    """Vectors of entities, layers over facts, and a decoder."""

    knows_relations = knows_entities = True

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        assert isinstance(options, GcnOptions)
        self._sizes = options
        self.entity = vectors(options.entities, options.width)

    @abstractmethod
    def relations(self) -> Tensor:
        """What the decoder takes for relations and their inverses: float32 [2R, d]."""

    @abstractmethod
    def encoded(self, facts: Edges, weight: Tensor | None) -> Tensor:
        """What the decoder takes for entities: float32 [N, d]; ``weight`` as of ``scores``."""

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
                "alone. For other graphs take ultra or trix"
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
    ) -> Tensor:
        if not isinstance(graph, KnowledgeGraph):
            raise GraphMismatchError(
                f"{self.name} knows the entities of a whole graph by their numbers, which a sampled part has not. Ask "
                "about the whole graph, or take ultra or trix"
            )
        entities = self.encoded(graph.facts, weight)
        own = of_query(states, relation)
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
    """So many, with Glorot's variance: float32 [count, width]."""
    return nn.Parameter(nn.init.xavier_normal_(torch.empty(count, width)))


def mean_weight(edges: Edges, weight: Tensor | None, layer: int) -> Tensor:
    """Weights of a layer's edges by which an entity takes the mean of what it gathers: float32 [E]. Edges of weight 0
    do not count."""
    own = of_layer(weight, layer)
    shares = 1 / edges.degrees(own).clamp_min(1)[edges.dst.long()]
    return shares if own is None else own * shares.to(own.device)
