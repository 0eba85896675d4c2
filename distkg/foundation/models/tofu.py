"""TOFU: a foundation model that reads text, number and image tokens of entities beside the graph (Zhang et al. 2026).

Only the abstract of the paper (arXiv 2602.15896) is public: discrete tokens of each modality, a hierarchy that fuses
them, and mixtures of messages. The rest is this module's design. The tokens of an entity are pooled for each query.
Every layer mixes ULTRA's messages with messages of modalities and with messages between entities whose tokens agree, by
a gate of query and relation. The output network reads the pooled tokens and the similarity of entity and anchor.
Without tokens, the model equals ULTRA bit for bit, with the parameters of the same names.

Structural tokens, the distances of an entity from both ends of a fact, come from example facts of the query's relation
(``distkg.foundation.layers.prompts``): distances from the query's own answer would reveal it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distkg.foundation.base import MODELS, GraphMismatchError, ModelOptions
from distkg.foundation.graphs.entity_tokens import TokenPool, Tokens
from distkg.foundation.graphs.knowledge_graph import Facts, KnowledgeGraph
from distkg.foundation.layers.mixed_messages import MixedConvolution, TokenMessages, filled_up
from distkg.foundation.layers.path_decoder import EntityDecoder
from distkg.foundation.layers.prompts import PromptEncoder
from distkg.foundation.layers.relational import Boundary, Layers, of_each, of_layer, of_query
from distkg.foundation.models.ultra import Ultra, UltraOptions
from distkg.kernels.message_passing.edges import Edges


class TofuOptions(UltraOptions):
    modalities: dict[str, int] = Field(
        default_factory=lambda: {"text": 384},
        description="Token modalities that the model reads: name in the store → width of the codebook vectors.",
    )
    token_width: int = Field(32, ge=1, description="Dimension of pooled tokens and of prompt states.")
    message_width: int = Field(8, ge=1, description="Dimension of the messages of a modality.")
    dropout: float = Field(0.3, ge=0, lt=1, description="Probability that a training step drops a modality.")
    balance: float = Field(
        0.0, ge=0, description="Loss weight of the divergence of the message gates from equal shares."
    )
    prompts: int = Field(
        0, ge=0, description="Number of example facts of its relation for each query; KG-ICL publishes 5."
    )
    prompt_hops: int = Field(3, ge=1, description="Maximum distance from the ends of an example, in steps.")
    prompt_fanout: int = Field(
        5, ge=1, description="Maximum number of facts followed from each entity around an example."
    )


Pooled = Mapping[str, Tensor]
"""Modality → pooled token vectors of each entity for each query, float32 [B, N, t]; modalities that the graph lacks are
absent."""
Likeness = Mapping[str, Tensor]
"""Modality → token similarity of each entity and the anchor, float32 [B, N]."""


class TokenReadOut(nn.Module):
    """Contribution of an entity's tokens, and of their similarity to the anchor's, to its score; added before the ReLU
    of the output network and zero at initialization.

    The similarity of two entities is measured between the frozen vectors of their tokens, and its effect on the score
    is learned for each query. A learned similarity overfits the entities that it was learned from.
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
        """Return float32 [B, m, hidden] of pooled tokens [B, m, t], similarities [B, m] and queries [B, d]."""
        terms = []
        for name, tokens in pooled.items():
            by_likeness = likeness[name][..., None] * self.like_anchor[name](query)[:, None]
            terms.append(self.own[name](self.norms[name](tokens)) + by_likeness)
        return torch.stack(terms).sum(0)


def _silent(width: int, out: int, bias: bool = False) -> nn.Linear:
    """Return a linear map whose parameters are initialized with zeros."""
    linear = nn.Linear(width, out, bias)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear


class TokenDecoder(EntityDecoder):
    """Entity decoder with mixed messages; without tokens it equals ``EntityDecoder``."""

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
        """Return the message factors of pooled tokens [B, N, t] for all layers."""
        halves = {name: torch.tanh(self.of_tokens[name](own)).chunk(2, dim=-1) for name, own in pooled.items()}
        source_factors = {name: own.contiguous() for name, (own, _) in halves.items()}
        return TokenMessages(source_factors, torch.stack([agreeing for _, agreeing in halves.values()]).sum(0))

    def read(
        self,
        facts: Edges,
        relations: Tensor,
        anchor: Tensor,
        relation: Tensor,
        weight: Tensor | None,
        candidates: Tensor | None,
        tokens: Tokens,
        place: Tensor | None = None,
    ) -> Tensor:
        """Return scores float32 [B, N] or [B, m] as ``EntityDecoder``, with the tokens of entities."""
        if not tokens:
            scores_without_tokens: Tensor = self(facts, relations, anchor, relation, weight, candidates, place)
            return scores_without_tokens
        relations = of_each(relations, place)  # gates depend on the query
        query = of_query(relations, relation)
        pooled = {name: self.pools[name](own, query) for name, own in tokens.items()}
        messages, states = self.told(pooled), Boundary(anchor, query).states(facts.nodes)
        width = query.shape[1]
        boundary = Boundary(anchor, F.pad(query, (0, filled_up(width + messages.width) - width)))
        for number, layer in enumerate(self.layers):
            states = layer.mixed(states, relations, query, facts, boundary, of_layer(weight, number), messages)
        alike = {name: own.likeness(anchor) for name, own in tokens.items()}
        if candidates is not None:
            states, pooled = chosen(states, candidates), {name: chosen(own, candidates) for name, own in pooled.items()}
            alike = {name: own.gather(1, candidates) for name, own in alike.items()}
        scores: Tensor = self.mlp(states, query, self.token_mlp(pooled, alike, query))
        return scores


def chosen(states: Tensor, candidates: Tensor) -> Tensor:
    """Return the rows of each query's candidates: float32 [B, m, d] of states [B, N, d] and candidates int64 [B, m]."""
    return states.gather(1, candidates[..., None].expand(-1, -1, states.shape[-1]))


class PromptStates(nn.Module):
    """Contribution of example facts to relation states; zero at initialization and for relations that are near no
    example."""

    def __init__(self, options: TofuOptions) -> None:
        super().__init__()
        sizes = {"examples": options.prompts, "hops": options.prompt_hops, "fanout": options.prompt_fanout}
        self.encoder = PromptEncoder(options.token_width, **sizes)
        self.linear = nn.Linear(options.token_width, options.width, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, graph: KnowledgeGraph, relation: Tensor, weight: Tensor | None) -> Tensor:
        """Return float32 [B, 2R, d]; arguments as of ``PromptEncoder``."""
        additions: Tensor = self.linear(self.encoder(graph, relation, weight))
        return additions


@MODELS.register("tofu")
class Tofu(Ultra):
    """TOFU model, ULTRA with tokens; 231,065 parameters with text and images, near the published quarter of a million.

    A training step drops each modality with probability ``dropout``, so that the model learns to work without it. With
    ``prompts``, relation states depend on example facts as well.
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

    def encoding_keys(self, graph: KnowledgeGraph, relation: Tensor) -> Tensor | None:
        # Examples of an inverse are read from their other end.
        return relation if self.relations_by_facts else super().encoding_keys(graph, relation)

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
        place: Tensor | None = None,
    ) -> Tensor:
        decoder = self.entity_model
        assert isinstance(decoder, TokenDecoder)
        return decoder.read(graph.facts, states, anchor, relation, weight, candidates, self._tokens(graph), place)

    def penalty(self, graph: Facts, states: Tensor, relation: Tensor) -> Tensor | None:
        """Return ``options.balance`` times the mean imbalance of the layers' gates; None for a graph without tokens."""
        modalities = [name for name in self._reads if name in graph.tokens]
        if not modalities or not self._balance:
            return None
        query = of_query(states, relation)
        decoder = self.entity_model
        assert isinstance(decoder, TokenDecoder)
        return (
            self._balance * torch.stack([layer.imbalance(states, query, modalities) for layer in decoder.layers]).mean()
        )

    def _tokens(self, graph: Facts) -> Tokens:
        """Return the graph's tokens of the modalities that the model reads, without the modalities dropped in this
        step."""
        names = [name for name in self._reads if name in graph.tokens]
        if self.training:
            names = [name for name in names if float(torch.rand((), device=self.device)) >= self._dropout]
        tokens = {name: graph.tokens[name] for name in names}
        for name, own in tokens.items():
            if own.width != self._reads[name]:
                raise GraphMismatchError(
                    f"the graph's {name} tokens have vectors of width {own.width}, and this model takes width "
                    f"{self._reads[name]}: make tokens of that width (`distkg tokens`), or train a model of the other "
                    "width (model.options.modalities)"
                )
        return {name: own.to(self.device) for name, own in tokens.items()}
