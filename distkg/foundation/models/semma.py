"""SEMMA: ULTRA with text vectors of the relations (Arun et al. 2025, arXiv 2505.20422).

Names of parameters are those of the published checkpoint.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from distkg.foundation.base import MODELS, GraphMismatchError, ModelOptions
from distkg.foundation.graphs.knowledge_graph import KnowledgeGraph
from distkg.foundation.layers.relational import FullBoundary, Layers
from distkg.foundation.models.ultra import MeetingConvolution, Ultra, UltraOptions
from distkg.kernels.message_passing.edges import Edges


class TextEncoder(nn.Module):
    """Layers over the graph of relations with similar texts; the result is the same for every query."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = Layers[MeetingConvolution](MeetingConvolution(width, 1) for _ in range(layers))

    def forward(self, text: Tensor, alike: Edges, cosines: Tensor) -> Tensor:
        """Return relation states float32 [1, 2R, d] of text vectors float32 [2R, d]; ``cosines`` float32 [E] are the
        weights of the edges."""
        states = text[None]
        boundary = FullBoundary(states)
        for layer in self.layers:
            states = layer(states, layer.vectors(), alike, boundary, cosines)
        return states


class Combiner(nn.Module):
    """Linear map that combines the graph state and the text state of a relation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * width, width)

    def forward(self, by_graph: Tensor, by_text: Tensor) -> Tensor:
        """Return states float32 [B, 2R, d] of graph states [B, 2R, d] and text states [1, 2R, d]."""
        combined: Tensor = self.fc(torch.cat([by_graph, by_text.expand_as(by_graph)], dim=-1))
        return combined


class SemmaOptions(UltraOptions):
    alike: float = Field(
        0.8, ge=-1, le=1, description="Cosine above which the texts of two relations are joined by an edge."
    )


@MODELS.register("semma")
class Semma(Ultra):
    """SEMMA model; 227,649 parameters with the published sizes.

    The text vectors of relations are part of the graph (``distkg.data.store.relation_text``). Without text, the model
    equals ULTRA with the shared parameters, and relation states come from the graph alone. A model trained on graphs
    with and without text has seen such states; a model trained on graphs with text only has not.
    """

    Options = SemmaOptions
    name = "semma"
    reads_relation_text = True

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        assert isinstance(options, SemmaOptions)
        self._alike, self._width = options.alike, options.width
        self.semantic_model = TextEncoder(options.width, options.layers)
        self.combiner = Combiner(options.width)

    def relation_states(
        self, graph: KnowledgeGraph, anchor: Tensor, relation: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        by_graph = super().relation_states(graph, anchor, relation, weight)
        text = graph.relation_text
        if text is None:
            return by_graph
        if text.shape[1] != self._width:
            raise GraphMismatchError(
                f"the graph's relations have text vectors of width {text.shape[1]}, and this model takes width "
                f"{self._width}: make vectors of that width (`distkg relation-text`), or train a model of the other "
                "width (model.options.width)"
            )
        states: Tensor = self.combiner(by_graph, self.semantic_model(text, *graph.alike_in_text(self._alike)))
        return states
