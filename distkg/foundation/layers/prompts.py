"""Prompt encoder of KG-ICL: relation states from example facts (Cui et al. 2024, arXiv 2410.12288).

A few facts of the query's relation, and the facts around them, are encoded as small graphs of their own. In these an
entity is represented by its distances from the two ends of the example, and a relation by whether it is the query's
own. So entities, relations and whole graphs may be new.
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
    """Neighbourhoods of P examples as one graph of n entities, m relations and e facts, in both directions.

    The neighbourhoods are disjoint: a fact around several examples occurs several times, so that no message passes from
    one example to another.

    Attributes:
        position: int64 [n], of entities: steps from the head of the query's relation, times ``hops`` + 1, plus steps
            from its tail.
        head, relation, tail: int64 [e], of facts: indices of entities and relations in this graph.
        kind: int64 [m], of relations: id in the whole graph, in [0, 2R).
        example: int64 [m], of relations: index of the example.
        asked: int64 [P], of examples: index in this graph of the query's relation.
        query: int64 [P], of examples: index of the query.
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
        """Build prompts for queries of relations int64 [B] in [0, 2R) from the neighbourhoods of the examples of each;
        None if no query has an example. Examples of an inverse are those of its relation, read from the other end."""
        neighbourhoods = [neighbourhood for own in found for neighbourhood in own]
        if not neighbourhoods:
            return None
        query = np.repeat(np.arange(len(queries)), [len(own) for own in found])
        inverse = queries[query] >= relations
        nodes = np.array([len(neighbourhood.nodes) for neighbourhood in neighbourhoods])
        owner = np.repeat(
            np.arange(len(neighbourhoods)), [len(neighbourhood.facts) for neighbourhood in neighbourhoods]
        )
        before = (np.cumsum(nodes) - nodes)[owner]
        head, tail = (
            np.concatenate([getattr(neighbourhood, side) for neighbourhood in neighbourhoods]) + before
            for side in ("head", "tail")
        )
        # Facts are grouped by relation, so a relation begins where it differs from that of the fact before.
        relation = sampler.relation[np.concatenate([neighbourhood.facts for neighbourhood in neighbourhoods])].astype(
            np.int64
        )
        begins = np.diff(relation, prepend=-1) != 0
        begins |= np.diff(owner, prepend=-1) != 0
        place, kind, example = np.cumsum(begins) - 1, relation[begins], owner[begins]
        query_relation = np.flatnonzero(kind == queries[query[example]] % relations) + inverse * len(kind)
        sides = (
            _positions(neighbourhoods, np.repeat(inverse, nodes), sampler.hops),
            *both_directions(head, place, tail, num_relations=len(kind)),
            np.concatenate([kind, kind + relations]),
            np.concatenate([example, example]),
            query_relation,
            query,
        )
        return cls(*map(torch.from_numpy, sides))

    def to(self, device: torch.device) -> Prompts:
        return Prompts(*(side.to(device) for side in vars(self).values()))


def _positions(arounds: Sequence[Surrounding], inverse: NDArray[np.bool_], hops: int) -> NDArray[np.int64]:
    """Return the positions int64 [n] of the entities around examples, in their order; ``inverse`` bool [n] marks
    entities whose example is read from its tail."""
    head, tail = (np.concatenate([getattr(around, side) for around in arounds]) for side in ("from_head", "from_tail"))
    positions: NDArray[np.int64] = np.where(inverse, tail, head).astype(np.int64) * (hops + 1) + np.where(
        inverse, head, tail
    )
    return positions


class PromptUpdate(nn.Module):
    """Base class of the two updates of a layer: messages RReLU(W [x, y, q]) with shares σ(w [r, q])."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.message = nn.Linear(3 * width, width)
        self.attention = nn.Linear(2 * width, 1)
        self.norm = nn.LayerNorm(width)

    def weights(self) -> tuple[Tensor, ...]:
        """Return the blocks of W for x, y and q, transposed for products from the left: float32 [d, d] each."""
        width = len(self.norm.weight)
        return tuple(part.T for part in self.message.weight.split(width, dim=1))

    def shares(self, relations: Tensor, query: Tensor) -> Tensor:
        """Return the share of the messages of each relation: float32 [m, 1]."""
        return torch.sigmoid(self.attention(torch.cat([relations, query], dim=1)))

    def updated(self, states: Tensor, messages: Tensor, into: Tensor) -> Tensor:
        """Return LayerNorm of states float32 [k, d] plus the elementwise maximum of the messages [e, d]; ``into`` int64
        [e] is the row of each message."""
        place = into[:, None].expand_as(messages)
        largest = torch.zeros_like(states).scatter_reduce(0, place, messages, "amax", include_self=False)
        updated: Tensor = self.norm(states + largest)
        return updated


class EntityUpdate(PromptUpdate):
    """Update of entities from the facts whose tail they are, by messages of head, relation and query."""

    def forward(self, entities: Tensor, relations: Tensor, query: Tensor, prompts: Prompts) -> Tensor:
        """Return entity states float32 [n, d] of entities [n, d] and relations [m, d]; ``query`` [m, d] is the state of
        the query's relation."""
        of_head, of_relation, of_query = self.weights()
        by_relation = relations @ of_relation + query @ of_query + self.message.bias
        linear = take_rows(entities @ of_head, prompts.head) + take_rows(by_relation, prompts.relation)
        share = take_rows(self.shares(relations, query), prompts.relation)
        return self.updated(entities, F.rrelu(linear, training=self.training) * share, prompts.tail)


class RelationUpdate(PromptUpdate):
    """Update of relations from their facts, by messages of head, tail and query."""

    def forward(self, entities: Tensor, relations: Tensor, query: Tensor, prompts: Prompts) -> Tensor:
        """Return relation states float32 [m, d]; arguments as of ``EntityUpdate``."""
        of_head, of_tail, of_query = self.weights()
        by_query = query @ of_query + self.message.bias
        linear = take_rows(entities @ of_head, prompts.head) + take_rows(entities @ of_tail, prompts.tail)
        linear = linear + take_rows(by_query, prompts.relation)
        share = take_rows(self.shares(relations, query), prompts.relation)
        return self.updated(relations, F.rrelu(linear, training=self.training) * share, prompts.relation)


class PromptLayer(nn.Module):
    """Layer of the prompt encoder: updates entities, then relations from the new entities."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.entity, self.relation = EntityUpdate(width), RelationUpdate(width)

    def forward(self, entities: Tensor, relations: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Return new entity states float32 [n, d] and relation states float32 [m, d]."""

        def query() -> Tensor:
            return take_rows(relations, prompts.asked[prompts.example])

        entities = self.entity(entities, relations, query(), prompts)
        return entities, self.relation(entities, relations, query(), prompts)


class PromptEncoder(nn.Module):
    """Encoder of relation states for each query from examples of its relation; it can be used alone.

    ``PromptEncoder()(graph, torch.tensor([3, 0]))`` is float32 [2, 2R, 32].

    In each layer entities take the elementwise maximum of the messages of their facts, then relations do, with
    residuals and layer norms. KG-ICL divides by degrees; this encoder does not, because they would be those of the
    fan-out. In training, examples are drawn anew at every call; in evaluation, the examples of a graph are always the
    same.

    Args:
        width: dimension d of states.
        layers: number of message-passing layers.
        examples: maximum number of examples of each query.
        hops: maximum distance of facts from the ends of an example.
        fanout: maximum number of facts followed from each entity.
    """

    def __init__(self, width: int = 32, layers: int = 3, *, examples: int = 5, hops: int = 3, fanout: int = 5) -> None:
        super().__init__()
        self._width, self._examples, self._hops, self._fanout = width, examples, hops, fanout
        self.position = nn.Embedding((hops + 1) ** 2, width)
        self.asked = nn.Parameter(torch.randn(width))
        self.layers: Layers[PromptLayer] = Layers(PromptLayer(width) for _ in range(layers))
        self.read_out = nn.Linear(layers * width, width)

    def forward(self, graph: KnowledgeGraph, relation: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return relation states float32 [B, 2R, d], the mean over the examples; zeros for a relation that is around no
        example.

        Args:
            relation: int64 [B], in [0, 2R).
            weight: float32 [E] of the graph's facts, or [layers, E]. A fact with a weight of 0 anywhere is hidden in
                both directions: it is neither an example nor near one. None hides no fact.
        """
        distinct, place = torch.unique(relation, return_inverse=True)
        draw = int(torch.randint(1, 1 << 62, (), device=relation.device)) if self.training else 0
        prompts = self.prompts(graph, distinct, weight, draw)
        rows = len(distinct), 2 * graph.relations
        states = relation.new_zeros(rows[0] * rows[1], self._width, dtype=self.asked.dtype)
        if prompts is not None:
            prompts = prompts.to(relation.device)
            query = prompts.query[prompts.example]
            means = self.read(prompts) / prompts.query.bincount(minlength=len(distinct))[query, None]
            states = states.index_add(0, query * rows[1] + prompts.kind, means)
        return states.view(*rows, self._width).index_select(0, place)

    def prompts(
        self, graph: KnowledgeGraph, relation: Tensor, weight: Tensor | None = None, draw: int = 0
    ) -> Prompts | None:
        """Return the prompts of these queries, on CPU; arguments as of ``forward``, ``draw`` as of
        ``ExampleSampler``."""
        sampler, queries = graph.examples(self._hops, self._fanout), relation.cpu().numpy()
        hidden = None if weight is None else _hidden(graph, sampler, weight)
        direct = (queries % graph.relations).tolist()
        surroundings = sampler.surroundings(direct, self._examples, hidden, draw)
        return Prompts.of(sampler, graph.relations, queries, surroundings)

    def read(self, prompts: Prompts) -> Tensor:
        """Return the states of the relations around the examples: float32 [m, d]."""
        entities: Tensor = self.position(prompts.position)
        relations = torch.zeros(len(prompts.kind), self._width, device=entities.device)
        relations = relations.index_put((prompts.asked,), self.asked)
        states_of_layers = []
        for layer in self.layers:
            entities, relations = layer(entities, relations, prompts)
            states_of_layers.append(relations)
        states: Tensor = self.read_out(torch.cat(states_of_layers, dim=1))
        return states


def _hidden(graph: KnowledgeGraph, sampler: ExampleSampler, weight: Tensor) -> NDArray[np.bool_] | None:
    """Return the mask of the sampler's facts that have a weight of 0 in either direction: bool [T'], True for hidden;
    None if no fact is hidden."""
    places = (weight == 0).nonzero()[:, -1].cpu()
    if not len(places):
        return None
    head, kind, tail = (side[places].numpy() for side in (graph.facts.dst, graph.facts.relation, graph.facts.src))
    inverse = kind >= graph.relations
    return sampler.hidden(np.where(inverse, tail, head), kind % graph.relations, np.where(inverse, head, tail))
