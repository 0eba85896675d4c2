"""Knowledge graphs in the form that foundation models read: facts as edges, and the graphs of their relations."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.data.store.graph_store import Store
from distkg.data.store.relation_text import read_relation_text
from distkg.foundation.graphs.entity_tokens import Tokens, tokens_of_store
from distkg.graph.directions import both_directions, inverse_of
from distkg.graph.examples import ExampleSampler
from distkg.graph.relation_graph import KINDS, relation_graph, some_relations_of_entities
from distkg.graph.relation_hypergraph import PAIRS, relation_hypergraph
from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.incidence import Incidence
from distkg.kernels.message_passing.path_products import Paths


class Facts(Protocol):
    """Protocol of the input of an entity decoder: a graph, or a part of one.

    Attributes:
        entities, relations: their numbers, relations without inverses.
        facts: edges in both directions.
        tokens: entity tokens by modality.
    """

    @property
    def entities(self) -> int: ...

    @property
    def relations(self) -> int: ...

    @property
    def facts(self) -> Edges: ...

    @property
    def tokens(self) -> Tokens: ...


@dataclass(frozen=True)
class Hypergraph:
    """Hypergraph of relations that meet along a fact, as defined in ``distkg.graph.relation_hypergraph``.

    Attributes:
        pairs: edges (i, kind, j).
        pairs_back: the same hyperedges read from the other end, edges (j, kind, i).
        paths: (a, b, c) of the kind ``hfh``; the other kinds of paths are these with inverted ends.
    """

    pairs: Edges
    pairs_back: Edges
    paths: Paths

    @classmethod
    def of(cls, triples: Tensor, entities: int, relations: int) -> Hypergraph:
        """Build the hypergraph of facts int64 [m, 3].

        Raises:
            TooManyRelationsError: the hypergraph would be too large; the message says how large, and what to use
                instead.
        """
        arrays = [torch.from_numpy(array) for array in relation_hypergraph(triples.numpy(), entities, relations)]
        row, kind, column = arrays[:3]
        sizes = 2 * relations, PAIRS
        return cls(Edges.of(row, kind, column, *sizes), Edges.of(column, kind, row, *sizes), Paths(*arrays[3:]))


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """Facts to reason from, with derived graphs that are built once, at first use.

    The graph stays on CPU whatever the device of a model is; edges are copied to the device that reads them, once.

    Attributes:
        triples: int64 [T, 3] on CPU, head, relation, tail.
        entities, relations: N and R, without inverses.
        relation_text: float32 [2R, t], text vectors of relations and their inverses; None if there are none.
        tokens: entity tokens by modality.
    """

    triples: Tensor
    entities: int
    relations: int
    relation_text: Tensor | None = None
    tokens: Tokens = field(default_factory=dict)
    _in_text: dict[float, tuple[Edges, Tensor]] = field(default_factory=dict, init=False, repr=False)
    _in_entities: dict[int | None, Incidence] = field(default_factory=dict, init=False, repr=False)
    _examples: dict[tuple[int, int], ExampleSampler] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of_store(cls, store: Store, relation_text: str = "") -> KnowledgeGraph:
        """Build the graph of the training facts of a store, with text vectors of relations and entity tokens if its
        folder has them; tokens are read when a model first uses them.

        Args:
            relation_text: address of the text vectors, if they lie outside the store
                (``distkg.data.store.relation_text``).

        Raises:
            StoreError: the store or the vectors cannot be read.
        """
        triples = torch.from_numpy(store.triples("train").astype(np.int64))
        text = read_relation_text(store, relation_text)
        vectors = None if text is None else torch.from_numpy(text)
        return cls(triples, store.num_entities, store.num_relations, vectors, tokens_of_store(store))

    @cached_property
    def facts(self) -> Edges:
        """Edges of every fact in both directions: entity u gathers over (u, k) → v, k in [0, 2R)."""
        head, relation, tail = self.triples.unbind(1)
        directions = both_directions(head, relation, tail, num_relations=self.relations)
        return Edges.of(*directions, self.entities, 2 * self.relations)

    @cached_property
    def meetings(self) -> Edges:
        """Edges between relations that meet in an entity, of the four kinds of ``distkg.graph.relation_graph``."""
        return self._of_relations(relation_graph(self.triples.numpy(), self.entities, self.relations), len(KINDS))

    def meetings_in_entities(self, most_per_entity: int | None = None) -> Incidence:
        """Return the relations, with inverses, of which each entity is the head: two relations of an entity meet in
        it. ``most_per_entity`` as of ``some_relations_of_entities``."""
        if most_per_entity not in self._in_entities:
            sizes = self.entities, self.relations, most_per_entity
            offsets, own = some_relations_of_entities(self.triples.numpy(), *sizes)
            parts = torch.from_numpy(offsets), torch.from_numpy(own).int()
            self._in_entities[most_per_entity] = Incidence(2 * self.relations, *parts)
        return self._in_entities[most_per_entity]

    def alike_in_text(self, least: float) -> tuple[Edges, Tensor]:
        """Return the pairs of different relations whose texts have a cosine above ``least``: edges of one kind, and
        their cosines, float32 [E], in the order of the edges."""
        assert self.relation_text is not None
        if least not in self._in_text:
            unit = F.normalize(self.relation_text, dim=1)
            cosines = unit @ unit.T
            row, column = torch.nonzero((cosines > least).fill_diagonal_(False), as_tuple=True)
            edges = Edges.of(row, torch.zeros_like(row), column, 2 * self.relations, 1)
            self._in_text[least] = edges, cosines[edges.dst.long(), edges.src.long()]
        return self._in_text[least]

    def examples(self, hops: int, fanout: int) -> ExampleSampler:
        """Return a sampler of example facts of relations with their neighbourhoods: ``hops`` steps, ``fanout`` facts
        of each entity."""
        if (hops, fanout) not in self._examples:
            sizes = self.entities, self.relations
            self._examples[hops, fanout] = ExampleSampler(self.triples.numpy(), *sizes, hops=hops, fanout=fanout)
        return self._examples[hops, fanout]

    def hypergraph(self, weight: Tensor | None = None) -> Hypergraph:
        """Return the hypergraph of the facts whose ``weight`` float32 [E] is not 0; None hides no fact.

        The hypergraph of the whole graph is built once. With hidden facts it is rebuilt at every call: an entity whose
        only fact of a relation is hidden no longer meets that relation, which weights of hyperedges cannot express.
        """
        if weight is None or bool(weight.all()):
            return self._hypergraph
        facts = self.facts
        seen = (facts.relation < self.relations) & (weight.cpu() != 0)
        triples = torch.stack([side[seen].long() for side in (facts.dst, facts.relation, facts.src)], dim=1)
        return Hypergraph.of(triples, self.entities, self.relations)

    @cached_property
    def _hypergraph(self) -> Hypergraph:
        return Hypergraph.of(self.triples, self.entities, self.relations)

    def mask_without(self, anchor: Tensor, relation: Tensor, answer: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Return weights that hide queries with their answers in both directions: float32 [E], 0 for hidden facts and 1
        for others, on the device of the queries.

        Args:
            anchor, relation, answer: int64 [b], relation in [0, 2R).
            chosen: int64 [m], indices of the facts to return weights of, float32 [m]; None for all.
        """
        facts, inverse = self.facts.to(anchor.device), inverse_of(relation, self.relations)
        hidden = torch.cat([facts.keys_of(anchor, relation, answer), facts.keys_of(answer, inverse, anchor)])
        keys = facts.keys if chosen is None else facts.keys[chosen.to(anchor.device)]
        return (~torch.isin(keys, hidden)).float()

    def places_of(self, dst: Tensor, kind: Tensor, src: Tensor) -> Tensor:
        """Return the indices of edges in ``facts``, int64 [m]; of parallel edges the first. The sides are int64 [m]
        each."""
        facts = self.facts.to(dst.device)
        return torch.searchsorted(facts.keys, facts.keys_of(dst, kind, src))

    def _of_relations(self, edges: tuple[np.ndarray, np.ndarray, np.ndarray], kinds: int) -> Edges:
        row, kind, column = (torch.from_numpy(side) for side in edges)
        return Edges.of(row, kind, column, 2 * self.relations, kinds)
