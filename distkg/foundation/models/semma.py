"""SEMMA: ULTRA that also reads what relations are called (Arun et al. 2025, arXiv 2505.20422).

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
    """Layers over relations that are called alike, from their text; the same for every query."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = Layers[MeetingConvolution](MeetingConvolution(width, 1) for _ in range(layers))

    def forward(self, text: Tensor, alike: Edges, cosines: Tensor) -> Tensor:
        """float32 [1, 2R, d] of text float32 [2R, d]; ``cosines`` float32 [E] are weights of the edges."""
        states = text[None]
        boundary = FullBoundary(states)
        for layer in self.layers:
            states = layer(states, layer.vectors(), alike, boundary, cosines)
        return states


class Combiner(nn.Module):
    """One state of what the graph and the text say of a relation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * width, width)

    def forward(self, by_graph: Tensor, by_text: Tensor) -> Tensor:
        """float32 [B, 2R, d] of [B, 2R, d] and [1, 2R, d]."""
        found: Tensor = self.fc(torch.cat([by_graph, by_text.expand_as(by_graph)], dim=-1))
        return found


class SemmaOptions(UltraOptions):
    alike: float = Field(0.8, ge=-1, le=1, description="Cosine above which the texts of two relations are alike.")


@MODELS.register("semma")
class Semma(Ultra):
    """227,649 parameters with the published sizes.

    The text of relations comes with the graph (``distkg.data.store.relation_text``). Without it the model is ULTRA by
    the parameters that the two share, and the states of relations are those that the graph alone gives: what a model
    that learned from graphs with and without text has met before, and one that always had text has not.
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
                f"the graph's relations have text vectors of {text.shape[1]} numbers, and this model takes "
                f"{self._width}: make vectors of that width (`distkg relation-text`), or train a model of the other "
                "one (width in model.options)"
            )
        found: Tensor = self.combiner(by_graph, self.semantic_model(text, *graph.alike_in_text(self._alike)))
        return found
