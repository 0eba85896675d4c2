"""Layers whose entities gather a mixture of graph messages and token messages."""

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

AT_ONCE = 16  # numbers of a row; a pass over edges takes 1.5 times as long when a row is no multiple of it


class TokenMessages:
    """Factors by which tokens enter messages; computed once, because they are the same in all layers.

    Attributes:
        given: modality → float32 [B, N, w], factor of the message of an edge's source entity.
        agreeing: float32 [B, N, w], factor of both the source's message and the destination's sum.
    """

    def __init__(self, given: Mapping[str, Tensor], agreeing: Tensor) -> None:
        self.given, self.agreeing = given, agreeing

    @property
    def width(self) -> int:
        """Number of columns of all token messages: w for each modality, and w for agreement."""
        return self.agreeing.shape[-1] * (len(self.given) + 1)


class MixedConvolution(FactConvolution):
    """ULTRA's layer over facts, extended to a mixture of messages.

    An edge (u, k, v) carries x[v] w[k], as in ULTRA; for each modality D x[v] ⊙ tanh(A p[v]); and a[u] ⊙ a[v] ⊙ D x[v]
    ⊙ E w[k], which is large where the tokens of u and v agree: a is the sum of tanh(C p) over modalities. A gate of the
    query's and the edge's relation mixes the messages. Token messages are narrow, cross the edges in the same pass as
    ULTRA's, and are widened after the sum, by a matrix that is initialized with zeros. Gates are a softmax times the
    number of kinds of messages that are present, so they start at 1 while only ULTRA's messages have an effect. If
    ULTRA's share were initialized near 1, as a warm start suggests, the other kinds would learn as slowly as their
    share is small.
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
        """Return the states float32 [B, n, d] after this layer.

        ``relations`` are the states of the relation encoder, ``query`` is float32 [B, d], and the vectors of
        ``boundary`` have zeros in the columns of token messages.
        """
        places = [place for place, name in enumerate(self.names) if name in told.given]
        vectors, gates = self.vectors(relations), self.gates(relations, query, told.given)
        narrow, width = told.agreeing.shape[-1], states.shape[-1]
        whole = filled_up(width + told.width)
        inputs = beside(states, self.narrowed.weight, self.narrowed.bias, [*told.given.values(), told.agreeing], whole)
        nothing = gates.new_zeros(()).expand(*gates.shape[:-1], whole - width - told.width)
        factors = [
            vectors * gates[..., :1],
            *(gates[..., place + 1, None].expand(-1, -1, narrow) for place in places),
            nothing,
            self.of_relation(vectors) * gates[..., -1:],
        ]
        gathered = boundary.add_to(propagate(inputs, torch.cat(factors, dim=-1), edges, weight))
        linear, norm = self.linear, self.layer_norm
        # The product of the widening matrix and the layer's own matrix: one map of the narrow messages.
        widened = linear.weight[:, width:] @ self.widened
        *of_tokens, alike = widened.split(narrow, dim=1)
        maps = [
            linear.weight,
            *(of_tokens[place] for place in places),
            widened.new_zeros(width, nothing.shape[-1]),
            alike,
        ]
        vectors_of_layer = linear.bias, norm.weight, norm.bias
        return layer_update(states, gathered, torch.cat(maps, dim=1), *vectors_of_layer, factor=told.agreeing)

    def gates(self, relations: Tensor, query: Tensor, told: Collection[str]) -> Tensor:
        """Return the gates of the graph's messages, of each modality's and of agreement: float32 [B, 2R, 2 + M]; 0 for
        modalities that are not in ``told``."""
        both = torch.cat([query[:, None].expand_as(relations), relations], dim=-1)
        lacking = [place for place, name in enumerate(self.names, start=1) if name not in told]
        logits = self.gate(both)
        logits[..., lacking] = -torch.inf
        return logits.softmax(-1) * (logits.shape[-1] - len(lacking))

    def imbalance(self, relations: Tensor, query: Tensor, told: Collection[str]) -> Tensor:
        """Return the divergence of the gates from equal shares of all kinds of messages, on average over queries and
        relations.

        It is the Kullback-Leibler divergence of the mean gates from equal shares: float32 [], 0 at initialization, and
        the logarithm of the number of kinds if one kind has the whole share.
        """
        mean = self.gates(relations, query, told).mean((0, 1))
        present = mean[[0, *(place for place, name in enumerate(self.names, start=1) if name in told), -1]]
        return (present * present.log()).mean()


def filled_up(width: int) -> int:
    """Return ``width`` rounded up to a multiple of ``AT_ONCE``."""
    return -(-width // AT_ONCE) * AT_ONCE
