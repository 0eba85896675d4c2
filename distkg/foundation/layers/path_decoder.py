"""The entity decoder of ULTRA and its relatives: layers over facts that start at the anchor, then a score of each
entity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distkg.foundation.base import FoundationModel
from distkg.foundation.graphs.knowledge_graph import Facts
from distkg.foundation.layers.relational import Boundary, Convolution, Layers, Mlp, of_layer, of_query
from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.layer_inference import infer_scores, runs_without_gradients


class FactConvolution(Convolution):
    """Convolution over facts, with relation vectors that a small network of the layer makes from relation states."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__(width)
        self.relation_projection = Mlp(states, width, width)

    def vectors(self, relations: Tensor) -> Tensor:
        """Return vectors float32 [B, 2R, width] of relation states float32 [B, 2R, d]."""
        projected: Tensor = self.relation_projection(relations)
        return projected


class EntityDecoder(nn.Module):
    """Layers over facts, started with the state of the query's relation at the anchor, then a score of each entity."""

    def __init__(self, width: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.layers: Layers[FactConvolution] = Layers(FactConvolution(width, width) for _ in range(layers))
        self.mlp = ReadOut(width, hidden)

    def features(
        self,
        facts: Edges,
        relations: Tensor,
        anchor: Tensor,
        relation: Tensor,
        weight: Tensor | None,
        place: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the last states of all entities, float32 [B, N, d], and the vector of each query, float32 [B, d]."""
        query = of_query(relations, relation, place)
        boundary = Boundary(anchor, query)
        first, *others = self.layers
        states = first.start(boundary, first.vectors(relations), facts, of_layer(weight, 0), place)
        for number, layer in enumerate(others, start=1):
            states = layer(states, layer.vectors(relations), facts, boundary, of_layer(weight, number), place)
        return states, query

    def forward(
        self,
        facts: Edges,
        relations: Tensor,
        anchor: Tensor,
        relation: Tensor,
        weight: Tensor | None,
        candidates: Tensor | None = None,
        place: Tensor | None = None,
    ) -> Tensor:
        """Return scores float32 [B, N] or [B, m]; ``relations`` float32 [B, 2R, d] are the states of the relation
        encoder, or [D, 2R, d] with ``place``."""
        states, query = self.features(facts, relations, anchor, relation, weight, place)
        if candidates is not None:
            states = states.gather(1, candidates[..., None].expand(-1, -1, states.shape[-1]))
        scores: Tensor = self.mlp(states, query)
        return scores


class ReadOut(nn.Sequential):
    """Output network: a score of each entity from its state and the query's vector."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(2 * width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, states: Tensor, query: Tensor, more: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return scores float32 [B, N] of states [B, N, d] and queries [B, d]; ``more`` [B, N, hidden] is added before
        the ReLU."""
        first, _, last = self
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        of_state, of_query = first.weight.split(states.shape[-1], dim=1)
        of_query = query @ of_query.T + first.bias  # the same for all entities
        if more is None and runs_without_gradients(states.shape[1], states, of_state, of_query, last.weight):
            return infer_scores(states, of_state, of_query, last.weight[0], last.bias)
        linear = states @ of_state.T + of_query[:, None]
        scores: Tensor = last(torch.relu(linear if more is None else linear + more))
        return scores[..., 0]


class PathModel(FoundationModel):
    """Base class of foundation models whose relation states are read by an ``EntityDecoder``.

    Attributes:
        entity_model: the decoder.
    """

    entity_model: EntityDecoder

    @property
    def depth(self) -> int:
        return len(self.entity_model.layers)

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
        scores: Tensor = self.entity_model(graph.facts, states, anchor, relation, weight, candidates, place)
        return scores
