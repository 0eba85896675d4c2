"""TOFU: a foundation model that reads tokens of text, numbers and images beside the graph (Zhang et al. 2026).

The paper (arXiv 2602.15896) is known by its abstract: discrete tokens of each modality, a hierarchy that fuses them,
and mixtures of messages. What is between is this module's: tokens of an entity are pooled for each query; every layer
mixes the messages of ULTRA with messages of modalities and with messages between entities whose tokens agree, by a gate
of query and relation; the read-out sees the pooled tokens again, and how alike entity and anchor are. A graph without
tokens is read as ULTRA reads it, bit for bit, by the parameters that both have under the same names.

Structural tokens, an entity's distances from both ends of a fact, are those of example facts of the query's relation
(``distkg.foundation.layers.prompts``): those of the query's own answer would give it away.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distkg.foundation.base import MODELS, GraphMismatchError, ModelOptions
from distkg.foundation.graphs.knowledge_graph import Facts, KnowledgeGraph
from distkg.foundation.graphs.tokens import TokenPool, Tokens
from distkg.foundation.layers.mixed_messages import MixedConvolution, TokenMessages, filled_up
from distkg.foundation.layers.path_decoder import EntityDecoder
from distkg.foundation.layers.prompts import PromptEncoder
from distkg.foundation.layers.relational import Boundary, Layers, of_layer, of_query
from distkg.foundation.models.ultra import Ultra, UltraOptions
from distkg.kernels.message_passing.edges import Edges


class TofuOptions(UltraOptions):
    modalities: dict[str, int] = Field(
        default_factory=lambda: {"text": 384},
        description="Tokens that are read, by their name in the store, and the width of their codebook's vectors.",
    )
    token_width: int = Field(32, ge=1, description="Numbers of an entity's pooled tokens, and of a prompt's states.")
    message_width: int = Field(8, ge=1, description="Numbers of a modality's message.")
    dropout: float = Field(0.3, ge=0, lt=1, description="Chance that a step does without a modality.")
    balance: float = Field(
        0.0, ge=0, description="Weight in the loss of how far gates are from hearing all kinds of messages alike."
    )
    prompts: int = Field(0, ge=0, description="Example facts of its relation that each query is given; 5 as published.")
    prompt_hops: int = Field(3, ge=1, description="Steps from the ends of an example that are looked at.")
    prompt_fanout: int = Field(5, ge=1, description="Facts that are followed from each entity around an example.")


Pooled = Mapping[str, Tensor]
"""Modality → a vector of each entity for each query, float32 [B, N, t]; those that the graph lacks are not in it."""
Likeness = Mapping[str, Tensor]
"""Modality → how alike each entity and the anchor are by their tokens, float32 [B, N]."""


class TokenReadOut(nn.Module):
    """What the tokens of an entity, and how they are like the anchor's, add to its score before the ReLU of the
    read-out; nothing at the start.

    How alike two entities are is measured in the frozen vectors of their tokens, and what that tells about an answer is
    learned for each query: a likeness that is itself learned knows the entities that it was learned from too well.
    """

    def __init__(self, options: TofuOptions) -> None:
        super().__init__()
        width, hidden = options.token_width, options.hidden
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in options.modalities})
        self.own = nn.ModuleDict({name: _silent(width, hidden) for name in options.modalities})
        self.like_anchor = nn.ModuleDict(
            {name: _silent(options.width, hidden, bias=True) for name in options.modalities}
        )

    def forward(self, pooled: Pooled, likeness: Likeness, query: Tensor) -> Tensor:
        """float32 [B, m, hidden] of pooled tokens [B, m, t], likeness [B, m] and queries [B, d]."""
        found = []
        for name, tokens in pooled.items():
            by_likeness = likeness[name][..., None] * self.like_anchor[name](query)[:, None]
            found.append(self.own[name](self.norms[name](tokens)) + by_likeness)
        return torch.stack(found).sum(0)


def _silent(width: int, out: int, bias: bool = False) -> nn.Linear:
    """A linear map that begins with zeros."""
    linear = nn.Linear(width, out, bias)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear


class TokenDecoder(EntityDecoder):
    """Layers of mixed messages, then a score of each entity; without tokens, as ``EntityDecoder``."""

    layers: Layers[MixedConvolution]  # type: ignore[assignment]

    def __init__(self, options: TofuOptions) -> None:
        super().__init__(options.width, 0, options.hidden)
        sizes = options.width, options.message_width, list(options.modalities)
        self.layers = Layers(MixedConvolution(*sizes) for _ in range(options.layers))
        self.pools = nn.ModuleDict(
            {name: TokenPool(width, options.token_width, options.width) for name, width in options.modalities.items()}
        )
        self.of_tokens = nn.ModuleDict(
            {name: nn.Linear(options.token_width, 2 * options.message_width) for name in options.modalities}
        )
        self.token_mlp = TokenReadOut(options)

    def told(self, pooled: Pooled) -> TokenMessages:
        """What layers hear of tokens [B, N, t]."""
        found = {name: torch.tanh(self.of_tokens[name](own)).chunk(2, dim=-1) for name, own in pooled.items()}
        given = {name: own.contiguous() for name, (own, _) in found.items()}
        return TokenMessages(given, torch.stack([agreeing for _, agreeing in found.values()]).sum(0))

    def read(
        self,
        facts: Edges,
        relations: Tensor,
        anchor: Tensor,
        relation: Tensor,
        weight: Tensor | None,
        candidates: Tensor | None,
        tokens: Tokens,
    ) -> Tensor:
        """float32 [B, N] or [B, m], as ``EntityDecoder``, with the tokens of entities."""
        query = of_query(relations, relation)
        if not tokens:
            found: Tensor = self(facts, relations, anchor, relation, weight, candidates)
            return found
        pooled = {name: self.pools[name](own, query) for name, own in tokens.items()}
        told, states = self.told(pooled), Boundary(anchor, query).states(facts.nodes)
        width = query.shape[1]
        boundary = Boundary(anchor, F.pad(query, (0, filled_up(width + told.width) - width)))
        for number, layer in enumerate(self.layers):
            states = layer.mixed(states, relations, query, facts, boundary, of_layer(weight, number), told)
        alike = {name: own.likeness(anchor) for name, own in tokens.items()}
        if candidates is not None:
            states, pooled = chosen(states, candidates), {name: chosen(own, candidates) for name, own in pooled.items()}
            alike = {name: own.gather(1, candidates) for name, own in alike.items()}
        scores: Tensor = self.mlp(states, query, self.token_mlp(pooled, alike, query))
        return scores


def chosen(states: Tensor, candidates: Tensor) -> Tensor:
    """Rows of each query's candidates: float32 [B, m, d] of states [B, N, d] and candidates int64 [B, m]."""
    return states.gather(1, candidates[..., None].expand(-1, -1, states.shape[-1]))


class PromptStates(nn.Module):
    """What examples add to the states of relations: nothing at the start, and nothing to those that are near none."""

    def __init__(self, options: TofuOptions) -> None:
        super().__init__()
        sizes = {"examples": options.prompts, "hops": options.prompt_hops, "fanout": options.prompt_fanout}
        self.encoder = PromptEncoder(options.token_width, **sizes)
        self.linear = nn.Linear(options.token_width, options.width, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, graph: KnowledgeGraph, relation: Tensor, weight: Tensor | None) -> Tensor:
        """float32 [B, 2R, d]; arguments as of ``PromptEncoder``."""
        found: Tensor = self.linear(self.encoder(graph, relation, weight))
        return found


@MODELS.register("tofu")
class Tofu(Ultra):
    """ULTRA and tokens; 231,065 parameters with text and images, near the published quarter of a million.

    While it learns, a step does without each modality at a chance of ``dropout``, so that it also learns to do without.
    With ``prompts``, states of relations are told by examples too, and so depend on facts.
    """

    Options = TofuOptions
    name = "tofu"
    grows_from = "ultra"

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        assert isinstance(options, TofuOptions)
        self._reads, self._dropout, self._balance = dict(options.modalities), options.dropout, options.balance
        self.entity_model = TokenDecoder(options)
        self.relations_by_facts = options.prompts > 0
        if options.prompts:
            self.prompt_model = PromptStates(options)

    def relation_states(
        self, graph: KnowledgeGraph, anchor: Tensor, relation: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        states = super().relation_states(graph, anchor, relation, weight)
        return states + self.prompt_model(graph, relation, weight) if self.relations_by_facts else states

    @property
    def reads(self) -> dict[str, int]:
        return self._reads

    def scores(
        self,
        graph: Facts,
        states: Tensor,
        anchor: Tensor,
        relation: Tensor,
        weight: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> Tensor:
        decoder = self.entity_model
        assert isinstance(decoder, TokenDecoder)
        return decoder.read(graph.facts, states, anchor, relation, weight, candidates, self._tokens(graph))

    def penalty(self, graph: Facts, states: Tensor, relation: Tensor) -> Tensor | None:
        """``options.balance`` times the mean of the layers' imbalance; nothing for a graph without tokens."""
        told = [name for name in self._reads if name in graph.tokens]
        if not told or not self._balance:
            return None
        query = of_query(states, relation)
        decoder = self.entity_model
        assert isinstance(decoder, TokenDecoder)
        return self._balance * torch.stack([layer.imbalance(states, query, told) for layer in decoder.layers]).mean()

    def _tokens(self, graph: Facts) -> Tokens:
        """Those of the graph that the model knows, without those that fall out in this step."""
        names = [name for name in self._reads if name in graph.tokens]
        if self.training:
            names = [name for name in names if float(torch.rand((), device=self.device)) >= self._dropout]
        tokens = {name: graph.tokens[name] for name in names}
        for name, own in tokens.items():
            if own.width != self._reads[name]:
                raise GraphMismatchError(
                    f"the graph's {name} tokens have vectors of {own.width} numbers, and this model takes "
                    f"{self._reads[name]}: make tokens of that width (`distkg tokens`), or train a model of the other "
                    "one (modalities in model.options)"
                )
        return {name: own.to(self.device) for name, own in tokens.items()}
