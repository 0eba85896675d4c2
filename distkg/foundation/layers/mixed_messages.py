"""Layers whose entities gather a mixture of messages: the graph's, and those of what entities say and look like."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from distkg.foundation.layers.path_decoder import FactConvolution
from distkg.foundation.layers.relational import Boundary
from distkg.kernels.message_passing.concatenated_projections import beside
from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.layer_update import layer_update
from distkg.kernels.message_passing.sums import propagate

AT_ONCE = 16  # numbers; a pass over edges takes half as long again where a row ends in fewer


class TokenMessages:
    """What tokens put into messages; the same in all layers, so that it is made once.

    Attributes:
        given: modality → float32 [B, N, w], by which what an entity gives is multiplied.
        agreeing: float32 [B, N, w], where what is gathered is multiplied too.
    """

    def __init__(self, given: Mapping[str, Tensor], agreeing: Tensor) -> None:
        self.given, self.agreeing = given, agreeing

    @property
    def width(self) -> int:
        """Of all messages but ULTRA's: w for each modality, and w."""
        return self.agreeing.shape[-1] * (len(self.given) + 1)


class MixedConvolution(FactConvolution):
    """ULTRA's layer over facts, whose entities gather a mixture of messages.

    An edge (u, k, v) brings x[v] w[k], as in ULTRA; for each modality D x[v] ⊙ tanh(A p[v]); and a[u] ⊙ a[v] ⊙ D x[v]
    ⊙ E w[k], which is large where the tokens of u and v agree: a is the sum of tanh(C p) over modalities. A gate of the
    query's and the edge's relation mixes them. What is not ULTRA's is narrow, crosses the edges in the same pass, and
    is widened once it is gathered, at the start by zeros. Gates are a softmax times the number of kinds of messages
    that there are, so 1 at the start, when nothing but ULTRA's messages is heard: were ULTRA's share nearly all, as a
    warm start suggests, others would learn as slowly as their share is small.
    """

    def __init__(self, width: int, narrow: int, modalities: Sequence[str]) -> None:
        super().__init__(width, width)
        self.names = list(modalities)
        kinds = 2 + len(self.names)
        self.gate = nn.Linear(2 * width, kinds)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.narrowed = nn.Linear(width, narrow)
        self.of_relation = nn.Linear(width, narrow)
        self.widened = nn.Parameter(torch.zeros(width, (kinds - 1) * narrow))

    def mixed(
        self,
        states: Tensor,
        relations: Tensor,
        query: Tensor,
        edges: Edges,
        boundary: Boundary,
        weight: Tensor | None,
        told: TokenMessages,
    ) -> Tensor:
        """States float32 [B, n, d] after this layer; ``relations`` are the encoder's states, ``query`` [B, d], and the
        vectors of ``boundary`` have zeros for the messages that are not ULTRA's."""
        there = [place for place, name in enumerate(self.names) if name in told.given]
        vectors, gates = self.vectors(relations), self.gates(relations, query, told.given)
        narrow, width = told.agreeing.shape[-1], states.shape[-1]
        whole = filled_up(width + told.width)
        given = beside(states, self.narrowed.weight, self.narrowed.bias, [*told.given.values(), told.agreeing], whole)
        nothing = gates.new_zeros(()).expand(*gates.shape[:-1], whole - width - told.width)
        by = [
            vectors * gates[..., :1],
            *(gates[..., place + 1, None].expand(-1, -1, narrow) for place in there),
            nothing,
            self.of_relation(vectors) * gates[..., -1:],
        ]
        found = boundary.add_to(propagate(given, torch.cat(by, dim=-1), edges, weight))
        linear, norm = self.linear, self.layer_norm
        # Widened and then seen by the layer's own map: one map of what is narrow.
        widened = linear.weight[:, width:] @ self.widened
        *of_tokens, alike = widened.split(narrow, dim=1)
        maps = [
            linear.weight,
            *(of_tokens[place] for place in there),
            widened.new_zeros(width, nothing.shape[-1]),
            alike,
        ]
        vectors_of_layer = linear.bias, norm.weight, norm.bias
        return layer_update(states, found, torch.cat(maps, dim=1), *vectors_of_layer, factor=told.agreeing)

    def gates(self, relations: Tensor, query: Tensor, told: Collection[str]) -> Tensor:
        """Of the graph's messages, of each modality's, and of agreeing entities': float32 [B, 2R, 2 + M], where those
        of modalities that are not ``told`` are 0."""
        both = torch.cat([query[:, None].expand_as(relations), relations], dim=-1)
        lacking = [place for place, name in enumerate(self.names, start=1) if name not in told]
        logits = self.gate(both)
        logits[..., lacking] = -torch.inf
        return logits.softmax(-1) * (logits.shape[-1] - len(lacking))

    def imbalance(self, relations: Tensor, query: Tensor, told: Collection[str]) -> Tensor:
        """How far the gates are, on average over queries and relations, from hearing all kinds of messages alike.

        The divergence (Kullback and Leibler) of their mean from equal shares: float32 [], 0 at the start, and the
        logarithm of the number of kinds where only one is heard.
        """
        mean = self.gates(relations, query, told).mean((0, 1))
        heard = mean[[0, *(place for place, name in enumerate(self.names, start=1) if name in told), -1]]
        return (heard * heard.log()).mean()


def filled_up(width: int) -> int:
    """The next multiple of what a CPU adds at once."""
    return -(-width // AT_ONCE) * AT_ONCE
