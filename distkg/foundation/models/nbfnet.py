"""NBFNet: scores from the paths between two entities, by a Bellman-Ford iteration over one graph's relations (Zhu et
al. 2021, arXiv 2106.06935).

Not a foundation model in the strict sense: each relation has a vector of its own, so a model serves the graph that it
was trained on and other graphs with the same relations. It has no entity vectors.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distkg.foundation.base import MODELS, FoundationModel, GraphMismatchError, ModelOptions
from distkg.foundation.graphs.knowledge_graph import Facts, KnowledgeGraph
from distkg.foundation.layers.path_decoder import ReadOut
from distkg.foundation.layers.relational import Boundary, Layers, of_layer, of_query
from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.messages import Message
from distkg.kernels.message_passing.moments import propagate_moments
from distkg.kernels.message_passing.sums import propagate

Aggregate = Literal["sum", "mean", "max", "pna"]
_LEAST_VARIANCE, _LEAST_SCALE = 1e-6, 1e-2


class NBFNetOptions(ModelOptions):
    relations: int = Field(
        0, ge=0, description="Number of relations of the graph, without inverses; set from the store of the run."
    )
    width: int = Field(32, ge=1, description="Dimension of entity states.")
    layers: int = Field(
        6, ge=1, description="Number of iterations, which is the length of the longest path considered."
    )
    hidden: int = Field(64, ge=1, description="Width of the hidden layer of the output network.")
    message: Message = Field("distmult", description="Message function of an entity state and a relation vector.")
    aggregate: Aggregate = Field("pna", description="Aggregation of the messages of an entity.")
    dependent: bool = Field(
        True, description="Make the relation vectors of each layer depend on the relation of the query."
    )


class BellmanFord(nn.Module):
    """NBFNet layer: states x become x + ReLU(LayerNorm(W [x, aggregate of messages and boundary]))."""

    def __init__(self, options: NBFNetOptions) -> None:
        super().__init__()
        width, kinds = options.width, 2 * options.relations
        self._options = options
        self.relation = nn.Linear(width, kinds * width) if options.dependent else nn.Embedding(kinds, width)
        self.linear = nn.Linear((13 if options.aggregate == "pna" else 2) * width, width)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, states: Tensor, query: Tensor, edges: Edges, boundary: Boundary, weight: Tensor | None) -> Tensor:
        """Return the states after this layer, float32 [B, n, d]; ``query`` float32 [B, d] holds the vectors of the
        queries' relations."""
        relations = self._relations(query)
        if self._options.aggregate == "sum":
            gathered = boundary.add_to(propagate(states, relations, edges, weight, self._options.message))
        else:
            gathered = self._from_moments(states, relations, edges, boundary, weight)
        return states + F.relu(self.layer_norm(self.linear(torch.cat([states, gathered], dim=-1))))

    def _relations(self, query: Tensor) -> Tensor:
        if isinstance(self.relation, nn.Linear):
            projected: Tensor = self.relation(query)
            return projected.view(len(query), -1, query.shape[1])
        return self.relation.weight[None]

    def _from_moments(
        self, states: Tensor, relations: Tensor, edges: Edges, boundary: Boundary, weight: Tensor | None
    ) -> Tensor:
        """Return the mean, max or PNA aggregate of the messages, with the boundary as one more message."""
        options, own = self._options, boundary.states(edges.nodes)
        moments = propagate_moments(states, relations, edges, weight, options.message)
        degree = edges.to(states.device).degrees(weight).to(states)[:, None]
        largest = torch.where(degree > 0, torch.maximum(moments.largest, own), own)
        if options.aggregate == "max":
            return largest
        count = degree + 1
        mean = (moments.total + own) / count
        if options.aggregate == "mean":
            return mean
        smallest = torch.where(degree > 0, torch.minimum(moments.smallest, own), own)
        variance = (moments.squares + own.square()) / count - mean.square()
        deviation = variance.clamp_min(_LEAST_VARIANCE).sqrt()
        features = torch.cat([mean, largest, smallest, deviation], dim=-1)
        scale = count.log()
        scale = scale / scale.mean().clamp_min(_LEAST_SCALE)
        scales = torch.cat([torch.ones_like(scale), scale, 1 / scale.clamp_min(_LEAST_SCALE)], dim=-1)
        return (features[..., None, :] * scales[..., None]).flatten(-2)


@MODELS.register("nbfnet")
class NBFNet(FoundationModel):
    """Neural Bellman-Ford network, by default with PNA aggregation (Corso et al. 2020)."""

    Options = NBFNetOptions
    name = "nbfnet"
    relations_by_facts = False
    knows_relations = True

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        assert isinstance(options, NBFNetOptions)
        self._relations = options.relations
        self.query = nn.Embedding(2 * options.relations, options.width)
        self.layers: Layers[BellmanFord] = Layers(BellmanFord(options) for _ in range(options.layers))
        self.mlp = ReadOut(options.width, options.hidden)

    @property
    def depth(self) -> int:
        return len(self.layers)

    def relation_states(
        self, graph: KnowledgeGraph, anchor: Tensor, relation: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        if graph.relations != self._relations:
            raise GraphMismatchError(
                f"nbfnet was made for {self._relations} relations, and this graph has {graph.relations}: it has "
                "vectors for those of its own graph alone. For other relations use ultra or trix"
            )
        return self.query.weight.expand(len(relation), -1, -1)

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
        query = of_query(states, relation, place)
        boundary = Boundary(anchor, query)
        entity_states = boundary.states(graph.entities)
        for number, layer in enumerate(self.layers):
            entity_states = layer(entity_states, query, graph.facts, boundary, of_layer(weight, number))
        if candidates is not None:
            entity_states = entity_states.gather(1, candidates[..., None].expand(-1, -1, entity_states.shape[-1]))
        scores: Tensor = self.mlp(entity_states, query)
        return scores
