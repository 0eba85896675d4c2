"""MOTIF: relations from the ways in which pairs and triples of relations meet, entities as in ULTRA (Huang et al. 2025,
arXiv 2502.13339).

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
from distkg.foundation.layers.relational import Boundary, Layers, Mlp, inverted
from distkg.graph.relation_hypergraph import KINDS, PAIRS
from distkg.kernels.message_passing.path_products import gather_products
from distkg.kernels.message_passing.sums import propagate

POSITIONS = 7  # position vectors of a layer, as published; a hyperedge uses 3 of them


class HypergraphConvolution(nn.Module):
    """Layer over the relation hypergraph: states x become ReLU(LayerNorm(W [a, x])) + x, where a is the sum of the
    messages that a relation receives from its hyperedges.

    The member at position p of a hyperedge receives the vector of the hyperedge's kind times the product of x + (vector
    of position q) over the other members, as in HCNet (Huang et al. 2024).
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.rel_embedding = nn.Embedding(len(KINDS), width)
        self.pos_embedding = nn.Embedding(POSITIONS, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, hypergraph: Hypergraph) -> Tensor:
        """Return the states after this layer, float32 [B, 2R, d], of states float32 [B, 2R, d]."""
        gathered = self.gathered(states, hypergraph)
        update = self.dropout(self.linear(torch.cat([gathered, states], dim=-1)))
        return F.relu(self.norm(update)) + states

    def gathered(self, states: Tensor, hypergraph: Hypergraph) -> Tensor:
        """Return the sum of the messages that each relation receives: float32 [B, 2R, d]."""
        first, second, third = (states + self.pos_embedding.weight[position] for position in (1, 2, 3))
        kinds = self.rel_embedding.weight[None, :PAIRS]
        by_pairs = propagate(second, kinds, hypergraph.pairs) + propagate(first, kinds, hypergraph.pairs_back)
        return by_pairs + self._by_paths(first, second, third, hypergraph)

    def _by_paths(self, first: Tensor, second: Tensor, third: Tensor, hypergraph: Hypergraph) -> Tensor:
        """Return the messages of all four kinds of paths, computed in one pass: float32 [B, 2R, d].

        The columns of a row are those of its relation followed by those of its inverse. Multiplication distributes over
        the sum of paths, so the vector of a kind is applied at the ends and not path by path.
        """
        tfh, tft, hft, hfh = self.rel_embedding.weight[PAIRS:]
        of_inverse = inverted(first)
        factors = (
            torch.cat([hfh * first + tfh * of_inverse, hft * first + tft * of_inverse], dim=-1),
            torch.cat([second, second], dim=-1),
            torch.cat([third, inverted(third)], dim=-1),
        )
        to_first, to_middle, to_last = (
            messages.chunk(2, dim=-1) for messages in gather_products(*factors, paths=hypergraph.paths)
        )
        as_head, as_tail = to_first
        return (
            hfh * as_head
            + hft * as_tail
            + inverted(tfh * as_head + tft * as_tail)
            + sum(to_middle)
            + to_last[0]
            + inverted(to_last[1])
        )


class RelationEncoder(nn.Module):
    """Layers over the hypergraph of relations; the initial state is one at the relation of the query and zero
    elsewhere."""

    def __init__(self, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        # Never used: the published file holds this tensor beside the position vectors of the layers.
        self.position = nn.Embedding.from_pretrained(torch.zeros(5, width), freeze=True)
        self.layers = Layers[HypergraphConvolution](HypergraphConvolution(width, dropout) for _ in range(layers))
        self.mlp = Mlp(width, width, width)
        self._width = width

    def forward(self, hypergraph: Hypergraph, relation: Tensor) -> Tensor:
        """Return the relation states float32 [B, 2R, d] for queries of relations int64 [B]."""
        ones = torch.ones(len(relation), self._width, device=relation.device)
        states = Boundary(relation, ones).states(hypergraph.pairs.nodes)
        for layer in self.layers:
            states = layer(states, hypergraph)
        encoded: Tensor = self.mlp(states)
        return encoded


class MotifOptions(ModelOptions):
    width: int = Field(64, ge=1, description="Dimension of entity and relation states.")
    layers: int = Field(
        6, ge=1, description="Number of layers of the relation encoder; the entity decoder has as many."
    )
    hidden: int = Field(128, ge=1, description="Width of the hidden layer of the output network.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout probability of the updates of relation states.")


@MODELS.register("motif")
class Motif(PathModel):
    """MOTIF model; 181,185 parameters with the published sizes.

    Unlike ULTRA, it encodes the relation of the query itself, so an inverse is encoded as an inverse. Hidden facts are
    hidden from the relation hypergraph too: in training the hypergraph is rebuilt at every step from the facts that
    remain, which takes 0.2 s on one core for the 272,115 facts of FB15k-237.
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
        """Return relation states as ``FoundationModel.relation_states``. Weights that differ from layer to layer,
        float32 [depth, E], do not change the hypergraph."""
        by_fact = weight if weight is None or weight.ndim == 1 else None
        distinct, place = torch.unique(relation, return_inverse=True)
        states: Tensor = self.relation_model(graph.hypergraph(by_fact), distinct)
        return states[place]

    def encoding_keys(self, graph: KnowledgeGraph, relation: Tensor) -> Tensor | None:
        return relation
