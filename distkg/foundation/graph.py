"""A knowledge graph as foundation models read it: facts as edges, and the graphs of its relations."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distkg.data.store import Store
from distkg.graph.relation_graph import KINDS, entity_relation_graphs, relation_graph
from distkg.kernels.edges import Edges


class Facts(Protocol):
    """What an entity decoder reads: a graph, or a part of one.

    Attributes:
        entities, relations: how many, relations without inverses.
        facts: in both directions.
    """

    @property
    def entities(self) -> int: ...

    @property
    def relations(self) -> int: ...

    @property
    def facts(self) -> Edges: ...


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """Facts to reason from; what is made of them is made once.

    It stays on CPU whatever device a model is on: edges are copied to where they are read, once.

    Attributes:
        triples: int64 [T, 3] on CPU, head, relation, tail.
        entities, relations: N and R, without inverses.
    """

    triples: Tensor
    entities: int
    relations: int
    _in_entities: dict[int | None, dict[str, Edges]] = field(default_factory=dict, init=False, repr=False)

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
        return self._of_relations(relation_graph(self.triples.numpy(), self.entities, self.relations), len(KINDS))

    def meetings_in_entities(self, most_per_entity: int | None = None) -> dict[str, Edges]:
        """Relations that meet, with the entity in which they do as the kind of the edge, by way of meeting."""
        if most_per_entity not in self._in_entities:
            sizes = self.entities, self.relations, most_per_entity
            found = entity_relation_graphs(self.triples.numpy(), *sizes)
            self._in_entities[most_per_entity] = {
                way: self._of_relations(edges, self.entities) for way, edges in found.items()
            }
        return self._in_entities[most_per_entity]

    def mask_without(self, anchor: Tensor, relation: Tensor, answer: Tensor) -> Tensor:
        """Weights of the facts that hide queries with their answers, int64 [b], relation in [0, 2R), in both
        directions: float32 [E] on the device of the queries, 0 for hidden and 1 for others."""
        facts, inverse = self.facts.to(anchor.device), (relation + self.relations) % (2 * self.relations)
        hidden = torch.cat([facts.keys_of(anchor, relation, answer), facts.keys_of(answer, inverse, anchor)])
        return (~torch.isin(facts.keys, hidden)).float()

    def places_of(self, gatherer: Tensor, kind: Tensor, giver: Tensor) -> Tensor:
        """Where edges of the graph, int64 [m] each, stand in ``facts``: int64 [m]; of parallel ones the first."""
        facts = self.facts.to(gatherer.device)
        return torch.searchsorted(facts.keys, facts.keys_of(gatherer, kind, giver))

    def _of_relations(self, edges: tuple[np.ndarray, np.ndarray, np.ndarray], kinds: int) -> Edges:
        row, kind, column = (torch.from_numpy(side) for side in edges)
        return Edges.of(row, kind, column, 2 * self.relations, kinds)
