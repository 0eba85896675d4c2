"""What a relation means, by example: the prompt encoder of KG-ICL (Cui et al. 2024, arXiv 2410.12288).

A few facts of the query's relation, and the facts around them, are read as small graphs of their own, in which an
entity is no more than its distances from the example's two ends, and a relation no more than the query's own or
another. So entities, relations and whole graphs may be new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from distkg.foundation.graphs.knowledge_graph import KnowledgeGraph
from distkg.foundation.layers.relational import Layers
from distkg.graph.directions import both_directions
from distkg.graph.examples import ExampleSampler, Surrounding
from distkg.kernels.gather_scatter import take_rows


@dataclass(frozen=True)
class Prompts:
    """What lies around P examples, as one graph of n entities, m relations and e facts, in both directions.

    What lies around several examples is in it several times, so that nothing passes from one example to another.

    Attributes:
        position: int64 [n], of entities: steps from the head of the query's relation, times ``hops`` + 1, and steps
            from its tail.
        head, relation, tail: int64 [e], of facts: numbers of entities and relations here.
        kind: int64 [m], of relations: which of the whole graph's, in [0, 2R).
        example: int64 [m], of relations: around which example.
        asked: int64 [P], of examples: the query's relation, by its number here.
        query: int64 [P], of examples: for which query.
    """

    position: Tensor
    head: Tensor
    relation: Tensor
    tail: Tensor
    kind: Tensor
    example: Tensor
    asked: Tensor
    query: Tensor

    @classmethod
    def of(
        cls, sampler: ExampleSampler, relations: int, queries: NDArray[np.int64], found: Sequence[list[Surrounding]]
    ) -> Prompts | None:
        """For queries of relations int64 [B] in [0, 2R), from what lies around examples of each; None where there are
        none. Examples of an inverse are those of its relation, read from the other end."""
        arounds = [around for own in found for around in own]
        if not arounds:
            return None
        query = np.repeat(np.arange(len(queries)), [len(own) for own in found])
        inverse = queries[query] >= relations
        nodes = np.array([len(around.nodes) for around in arounds])
        owner = np.repeat(np.arange(len(arounds)), [len(around.facts) for around in arounds])
        before = (np.cumsum(nodes) - nodes)[owner]
        head, tail = (
            np.concatenate([getattr(around, side) for around in arounds]) + before for side in ("head", "tail")
        )
        # Facts of a relation stand together, so a relation begins where a fact is of another than the one before.
        relation = sampler.relation[np.concatenate([around.facts for around in arounds])].astype(np.int64)
        begins = np.diff(relation, prepend=-1) != 0
        begins |= np.diff(owner, prepend=-1) != 0
        place, kind, example = np.cumsum(begins) - 1, relation[begins], owner[begins]
        asked = np.flatnonzero(kind == queries[query[example]] % relations) + inverse * len(kind)
        sides = (
            _positions(arounds, np.repeat(inverse, nodes), sampler.hops),
            *both_directions(head, place, tail, num_relations=len(kind)),
            np.concatenate([kind, kind + relations]),
            np.concatenate([example, example]),
            asked,
            query,
        )
        return cls(*map(torch.from_numpy, sides))

    def to(self, device: torch.device) -> Prompts:
        return Prompts(*(side.to(device) for side in vars(self).values()))


def _positions(arounds: Sequence[Surrounding], inverse: NDArray[np.bool_], hops: int) -> NDArray[np.int64]:
    """Of the entities around examples, in their order, where ``inverse`` bool [n] read from the example's tail."""
    head, tail = (np.concatenate([getattr(around, side) for around in arounds]) for side in ("from_head", "from_tail"))
    found: NDArray[np.int64] = np.where(inverse, tail, head).astype(np.int64) * (hops + 1) + np.where(
        inverse, head, tail
    )
    return found


class PromptUpdate(nn.Module):
    """What the two updates of a layer have in common: messages RReLU(W [x, y, q]), and their shares σ(w [r, q])."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.message = nn.Linear(3 * width, width)
        self.attention = nn.Linear(2 * width, 1)
        self.norm = nn.LayerNorm(width)

    def weights(self) -> tuple[Tensor, ...]:
        """W of x, y and q: float32 [d, d] each, for products from the left."""
        width = len(self.norm.weight)
        return tuple(part.T for part in self.message.weight.split(width, dim=1))

    def shares(self, relations: Tensor, query: Tensor) -> Tensor:
        """float32 [m, 1]."""
        return torch.sigmoid(self.attention(torch.cat([relations, query], dim=1)))

    def updated(self, states: Tensor, messages: Tensor, into: Tensor) -> Tensor:
        """LayerNorm of states float32 [k, d] plus the largest numbers of the messages [e, d] that go ``into`` each."""
        place = into[:, None].expand_as(messages)
        largest = torch.zeros_like(states).scatter_reduce(0, place, messages, "amax", include_self=False)
        found: Tensor = self.norm(states + largest)
        return found


class EntityUpdate(PromptUpdate):
    """Entities from the facts whose tail they are: messages of head, relation and query."""

    def forward(self, entities: Tensor, relations: Tensor, query: Tensor, prompts: Prompts) -> Tensor:
        """float32 [n, d] of entities [n, d] and relations [m, d]; ``query`` [m, d], of the query's relation."""
        of_head, of_relation, of_query = self.weights()
        by_relation = relations @ of_relation + query @ of_query + self.message.bias
        linear = take_rows(entities @ of_head, prompts.head) + take_rows(by_relation, prompts.relation)
        share = take_rows(self.shares(relations, query), prompts.relation)
        return self.updated(entities, F.rrelu(linear, training=self.training) * share, prompts.tail)


class RelationUpdate(PromptUpdate):
    """Relations from their facts: messages of head, tail and query."""

    def forward(self, entities: Tensor, relations: Tensor, query: Tensor, prompts: Prompts) -> Tensor:
        """float32 [m, d]; arguments as of ``EntityUpdate``."""
        of_head, of_tail, of_query = self.weights()
        by_query = query @ of_query + self.message.bias
        linear = take_rows(entities @ of_head, prompts.head) + take_rows(entities @ of_tail, prompts.tail)
        linear = linear + take_rows(by_query, prompts.relation)
        share = take_rows(self.shares(relations, query), prompts.relation)
        return self.updated(relations, F.rrelu(linear, training=self.training) * share, prompts.relation)


class PromptLayer(nn.Module):
    """New states of entities, and of relations by these."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.entity, self.relation = EntityUpdate(width), RelationUpdate(width)

    def forward(self, entities: Tensor, relations: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """float32 [n, d] and [m, d] of such."""

        def query() -> Tensor:
            return take_rows(relations, prompts.asked[prompts.example])

        entities = self.entity(entities, relations, query(), prompts)
        return entities, self.relation(entities, relations, query(), prompts)


class PromptEncoder(nn.Module):
    """States of relations in the light of each query, from examples of its relation; it can be used alone.

    ``PromptEncoder()(graph, torch.tensor([3, 0]))`` is float32 [2, 2R, 32].

    In each layer entities take the largest of the messages of their facts, then relations do, with residuals and layer
    norms; the degrees by which KG-ICL divides are left out, as they would be those of the fan-out. While it learns,
    examples are drawn anew at every call; else a graph's are always the same.

    Args:
        width: d.
        layers: of messages.
        examples: of each query, at most.
        hops: how far from an example's ends facts are seen.
        fanout: facts that are followed from each entity, at most.
    """

    def __init__(self, width: int = 32, layers: int = 3, *, examples: int = 5, hops: int = 3, fanout: int = 5) -> None:
        super().__init__()
        self._width, self._examples, self._hops, self._fanout = width, examples, hops, fanout
        self.position = nn.Embedding((hops + 1) ** 2, width)
        self.asked = nn.Parameter(torch.randn(width))
        self.layers: Layers[PromptLayer] = Layers(PromptLayer(width) for _ in range(layers))
        self.read_out = nn.Linear(layers * width, width)

    def forward(self, graph: KnowledgeGraph, relation: Tensor, weight: Tensor | None = None) -> Tensor:
        """float32 [B, 2R, d], the mean over the examples; zeros where a relation is not around any.

        Args:
            relation: int64 [B], in [0, 2R).
            weight: float32 [E] of the graph's facts, or [layers, E]; one that is 0 anywhere is hidden in both
                directions, and is neither an example nor near any. None hides none.
        """
        asked, place = torch.unique(relation, return_inverse=True)
        draw = int(torch.randint(1, 1 << 62, (), device=relation.device)) if self.training else 0
        prompts = self.prompts(graph, asked, weight, draw)
        rows = len(asked), 2 * graph.relations
        states = relation.new_zeros(rows[0] * rows[1], self._width, dtype=self.asked.dtype)
        if prompts is not None:
            prompts = prompts.to(relation.device)
            query = prompts.query[prompts.example]
            found = self.read(prompts) / prompts.query.bincount(minlength=len(asked))[query, None]
            states = states.index_add(0, query * rows[1] + prompts.kind, found)
        return states.view(*rows, self._width).index_select(0, place)

    def prompts(
        self, graph: KnowledgeGraph, relation: Tensor, weight: Tensor | None = None, draw: int = 0
    ) -> Prompts | None:
        """What is read for these queries, on CPU; arguments as of ``forward``, ``draw`` as of ``ExampleSampler``."""
        sampler, queries = graph.examples(self._hops, self._fanout), relation.cpu().numpy()
        hidden = None if weight is None else _hidden(graph, sampler, weight)
        direct = (queries % graph.relations).tolist()
        found = sampler.surroundings(direct, self._examples, hidden, draw)
        return Prompts.of(sampler, graph.relations, queries, found)

    def read(self, prompts: Prompts) -> Tensor:
        """States of the relations around the examples, float32 [m, d]."""
        entities: Tensor = self.position(prompts.position)
        relations = torch.zeros(len(prompts.kind), self._width, device=entities.device)
        relations = relations.index_put((prompts.asked,), self.asked)
        found = []
        for layer in self.layers:
            entities, relations = layer(entities, relations, prompts)
            found.append(relations)
        states: Tensor = self.read_out(torch.cat(found, dim=1))
        return states


def _hidden(graph: KnowledgeGraph, sampler: ExampleSampler, weight: Tensor) -> NDArray[np.bool_] | None:
    """The sampler's facts that have a weight of 0 in either direction: bool [T']; None where no fact has."""
    places = (weight == 0).nonzero()[:, -1].cpu()
    if not len(places):
        return None
    head, kind, tail = (side[places].numpy() for side in (graph.facts.dst, graph.facts.relation, graph.facts.src))
    inverse = kind >= graph.relations
    return sampler.hidden(np.where(inverse, tail, head), kind % graph.relations, np.where(inverse, head, tail))
