"""A knowledge graph as foundation models read it: facts as edges, and the graph of its relations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from distkg.data.store import Store
from distkg.graph.relation_graph import KINDS, relation_graph
from distkg.kernels.message_passing import Edges


@dataclass(frozen=True)
class KnowledgeGraph:
    """Facts to reason from.

    Attributes:
        triples: int64 [T, 3], head, relation, tail.
        entities, relations: N and R, without inverses.
    """

    triples: Tensor
    entities: int
    relations: int

    @classmethod
    def of_store(cls, store: Store) -> KnowledgeGraph:
        """The training facts of a store."""
        triples = torch.from_numpy(store.triples("train").astype(np.int64))
        return cls(triples, store.num_entities, store.num_relations)

    @cached_property
    def facts(self) -> Edges:
        """Every fact in both directions: entity u gathers over (u, k) → v, k in [0, 2R)."""
        head, relation, tail = self.triples.unbind(1)
        kind = torch.cat([relation, relation + self.relations])
        return Edges.of(torch.cat([head, tail]), kind, torch.cat([tail, head]), self.entities, 2 * self.relations)

    @cached_property
    def meetings(self) -> Edges:
        """Relations that meet in an entity, in the four ways of ``distkg.graph.relation_graph``."""
        found = relation_graph(self.triples.numpy(), self.entities, self.relations)
        row, kind, column = map(torch.from_numpy, found)
        return Edges.of(row, kind, column, 2 * self.relations, len(KINDS))

    def mask_without(self, anchor: Tensor, relation: Tensor, answer: Tensor) -> Tensor:
        """Weights of the facts that hide queries with their answers, int64 [b], relation in [0, 2R), in both
        directions: float32 [E], 0 for hidden and 1 for others."""
        inverse = (relation + self.relations) % (2 * self.relations)
        hidden = torch.cat([self._key(anchor, relation, answer), self._key(answer, inverse, anchor)])
        return (~torch.isin(self._keys, hidden)).float()

    @cached_property
    def _keys(self) -> Tensor:
        facts = self.facts
        return self._key(facts.gatherer.long(), facts.kind.long(), facts.giver.long())

    def _key(self, anchor: Tensor, relation: Tensor, answer: Tensor) -> Tensor:
        return (anchor * (2 * self.relations) + relation) * self.entities + answer
