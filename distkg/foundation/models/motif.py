"""MOTIF: relations by how pairs and triples of them meet, entities as in ULTRA (Huang et al. 2025, arXiv 2502.13339).

Names of parameters are those of the published checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distkg.foundation.base import MODELS, ModelOptions
from distkg.foundation.graphs.knowledge_graph import Hypergraph, KnowledgeGraph
from distkg.foundation.layers.path_decoder import EntityDecoder, PathModel
from distkg.foundation.layers.relational import Boundary, Layers
from distkg.graph.relation_hypergraph import KINDS, PAIRS
from distkg.kernels.message_passing.path_products import gather_products
from distkg.kernels.message_passing.sums import propagate

POSITIONS = 7  # vectors of a layer, as published; those of the 3 positions that a hyperedge has are in use


class HypergraphConvolution(nn.Module):
    """States into ReLU(LayerNorm(W [a, x])) + x, where a is what each relation gathers from its hyperedges.

    The member at position p of a hyperedge gathers its kind's vector times the product of x + (vector of position q)
    over the other members, as in HCNet (Huang et al. 2024).
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.rel_embedding = nn.Embedding(len(KINDS), width)
        self.pos_embedding = nn.Embedding(POSITIONS, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, hypergraph: Hypergraph) -> Tensor:
        """float32 [B, 2R, d]."""
        gathered = self.gathered(states, hypergraph)
        update = self.dropout(self.linear(torch.cat([gathered, states], dim=-1)))
        return F.relu(self.norm(update)) + states

    def gathered(self, states: Tensor, hypergraph: Hypergraph) -> Tensor:
        """What each relation gathers: float32 [B, 2R, d]."""
        first, second, third = (states + self.pos_embedding.weight[position] for position in (1, 2, 3))
        kinds = self.rel_embedding.weight[None, :PAIRS]
        by_pairs = propagate(second, kinds, hypergraph.pairs) + propagate(first, kinds, hypergraph.pairs_back)
        return by_pairs + self._by_paths(first, second, third, hypergraph)

    def _by_paths(self, first: Tensor, second: Tensor, third: Tensor, hypergraph: Hypergraph) -> Tensor:
        """Of all four kinds of paths in one pass: the columns of a row are those of its relation and, after them,
        of its inverse; by the law of distribution kinds are weighed at the ends and not path by path."""
        tfh, tft, hft, hfh = self.rel_embedding.weight[PAIRS:]
        inverted = _inverted(first)
        given = (
            torch.cat([hfh * first + tfh * inverted, hft * first + tft * inverted], dim=-1),
            torch.cat([second, second], dim=-1),
            torch.cat([third, _inverted(third)], dim=-1),
        )
        to_first, to_middle, to_last = (
            found.chunk(2, dim=-1) for found in gather_products(*given, paths=hypergraph.paths)
        )
        as_head, as_tail = to_first
        return (
            hfh * as_head
            + hft * as_tail
            + _inverted(tfh * as_head + tft * as_tail)
            + sum(to_middle)
            + to_last[0]
            + _inverted(to_last[1])
        )


def _inverted(states: Tensor) -> Tensor:
    """Each relation's row in the place of its inverse, of states [B, 2R, d]."""
    return states.roll(states.shape[1] // 2, dims=1)


class RelationEncoder(nn.Module):
    """Layers over the hypergraph of relations, from ones at the relation of the query."""

    def __init__(self, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        # Nothing reads these positions: they have their place in the published file, beside those of the layers.
        self.position = nn.Embedding.from_pretrained(torch.zeros(5, width), freeze=True)
        self.layers = Layers[HypergraphConvolution](HypergraphConvolution(width, dropout) for _ in range(layers))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self._width = width

    def forward(self, hypergraph: Hypergraph, relation: Tensor) -> Tensor:
        """float32 [B, 2R, d] of relations int64 [B]."""
        ones = torch.ones(len(relation), self._width, device=relation.device)
        states = Boundary(relation, ones).states(hypergraph.pairs.nodes)
        for layer in self.layers:
            states = layer(states, hypergraph)
        found: Tensor = self.mlp(states)
        return found


class MotifOptions(ModelOptions):
    width: int = Field(64, ge=1, description="Numbers of a state.")
    layers: int = Field(6, ge=1, description="Layers over relations, and as many over facts.")
    hidden: int = Field(128, ge=1, description="Width of the hidden layer of the read-out.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Of what a relation is updated by.")


@MODELS.register("motif")
class Motif(PathModel):
    """181,185 parameters with the published sizes.

    Unlike ULTRA it encodes the relation as it is asked, an inverse as an inverse, and never sees a hidden fact among
    relations either: in training the hypergraph is made anew at every step, from the facts that are left: 0.2 s on one
    core for the 272,115 of FB15k-237.
    """

    Options = MotifOptions
    name = "motif"

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        assert isinstance(options, MotifOptions)
        self.relation_model = RelationEncoder(options.width, options.layers, options.dropout)
        self.entity_model = EntityDecoder(options.width, options.layers, options.hidden)

    def relation_states(
        self, graph: KnowledgeGraph, anchor: Tensor, relation: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """As of every model; weights that differ from layer to layer, float32 [depth, E], hide nothing here."""
        by_fact = weight if weight is None or weight.ndim == 1 else None
        distinct, place = torch.unique(relation, return_inverse=True)
        states: Tensor = self.relation_model(graph.hypergraph(by_fact), distinct)
        return states[place]
