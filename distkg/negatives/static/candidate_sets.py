"""Sources that draw from a pool of entities that depends on the query.

The entities of all pools are stored one pool after the other. The pool of a query is a range of them, in relational
corruption a range with a gap. A draw thus has two steps, finding the range and choosing an index in it, without a loop
over triples. Semantics are those of the PyKEEN negative-sampling extension (d'Amato et al. 2025, arXiv 2508.05587).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from distkg.data.store.classes import Classes
from distkg.graph.csr import row_of_each
from distkg.kernels.jit import kernel
from distkg.negatives.base import SOURCES, Negatives, NegativeSource, Queries, RunSizes, SourceError, SourceOptions
from distkg.negatives.training_graph import TrainingGraph


class PoolOptions(SourceOptions):
    integrate: bool = Field(
        False,
        description="If a pool has fewer entities than the number of negatives, use the whole pool and draw the rest "
        "from all entities; otherwise small pools repeat entities and empty pools give no negatives.",
    )


@dataclass(frozen=True)
class Pools:
    """Pools of entities: pool p is ``members[offsets[p]:offsets[p + 1]]``.

    Attributes:
        offsets: int64 [P + 1].
        members: int32, distinct within a pool.
    """

    offsets: NDArray[np.int64]
    members: NDArray[np.int32]

    @classmethod
    def from_pairs(cls, pool: np.ndarray, member: np.ndarray, pools: int, entities: int) -> Pools:
        """Build pools of the distinct (pool, member) pairs, with members sorted within a pool."""
        keys = np.unique(pool.astype(np.int64) * entities + member)
        offsets = np.searchsorted(keys, np.arange(pools + 1, dtype=np.int64) * entities)
        return cls(offsets.astype(np.int64), (keys % entities).astype(np.int32))

    def ranges(self, pool: NDArray[np.int64]) -> Ranges:
        """Return the ranges of the pools [b]; -1 stands for an empty pool."""
        start, end = self.offsets[pool], self.offsets[pool + 1]
        return Ranges(start, np.where(pool < 0, 0, end - start), np.zeros_like(start), np.zeros_like(start))


@dataclass(frozen=True)
class Ranges:
    """Pool of each query: ``size`` members from ``start`` on, without the ``gap`` members from ``gap_at`` on.

    Attributes: int64 [b] each; ``size`` excludes the gap, ``gap_at`` is relative to ``start``.
    """

    start: NDArray[np.int64]
    size: NDArray[np.int64]
    gap_at: NDArray[np.int64]
    gap: NDArray[np.int64]


class PoolSource(NegativeSource):
    """Base class of sources with one pool per query. Subclasses define its range."""

    Options = PoolOptions
    bytes_per_query: ClassVar[int] = 0
    members: NDArray[np.int32]

    @classmethod
    def memory(cls, options: SourceOptions, sizes: RunSizes) -> int:
        return sizes.queries * cls.bytes_per_query

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        assert isinstance(options, PoolOptions)
        self.integrate = options.integrate

    @abstractmethod
    def ranges(self, anchor: np.ndarray, relation: np.ndarray, answer: np.ndarray) -> Ranges:
        """Return the pools of queries, int64 [b] each, as ranges of ``members``."""

    def draw(self, queries: Queries, count: int, generator: torch.Generator) -> Negatives:
        ranges = self._ranges(queries)
        uniforms = torch.randint(1 << 62, (len(queries), count), generator=generator)
        mask = torch.zeros(uniforms.shape, dtype=torch.bool)
        spans = ranges.start, ranges.size, ranges.gap_at, ranges.gap
        _take(*spans, self.members, self.entities, self.integrate, uniforms.numpy(), mask.numpy())
        return Negatives(uniforms, mask if bool(mask.any()) else None)

    def pool_sizes(self, queries: Queries) -> Tensor:
        return torch.from_numpy(self._ranges(queries).size)

    def _ranges(self, queries: Queries) -> Ranges:
        return self.ranges(queries.anchor.numpy(), queries.relation.numpy(), queries.answer.numpy())


@kernel
def _take(
    start: np.ndarray,
    size: np.ndarray,
    gap_at: np.ndarray,
    gap: np.ndarray,
    members: np.ndarray,
    entities: int,
    integrate: bool,
    uniforms: np.ndarray,
    mask: np.ndarray,
) -> None:
    """Replace random numbers int64 [b, K] by entities. The modulo's bias is below the pool's size / 2⁶²."""
    count = uniforms.shape[1]
    for i in range(uniforms.shape[0]):
        whole = integrate and size[i] < count
        for k in range(count):
            if whole and k >= size[i]:
                uniforms[i, k] %= entities
            elif size[i] == 0:
                uniforms[i, k] = 0
                mask[i, k] = True
            else:
                place = k if whole else uniforms[i, k] % size[i]
                if place >= gap_at[i]:
                    place += gap[i]
                uniforms[i, k] = members[start[i] + place]


@SOURCES.register("corrupt")
class Corrupt(PoolSource):
    """Entities that answer the relation in training: tails of r, heads for r⁻¹ (Socher et al. 2013)."""

    bytes_per_query = 72  # queries, their keys and the sorted keys, 8 bytes each number, while pools are built

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        _, relation, answer = graph.queries().T
        self._pools = Pools.from_pairs(relation, answer, 2 * graph.relations, graph.entities)
        self.members = self._pools.members

    def ranges(self, anchor: np.ndarray, relation: np.ndarray, answer: np.ndarray) -> Ranges:
        return self._pools.ranges(relation)


class ClassSource(PoolSource):
    """Base of the sources with one pool per class of entities. A subclass chooses the class of a query's negatives.

    Attributes:
        name: name of the source in error messages.
        of_relations: whether the source needs the classes that relations require.
    """

    name: ClassVar[str]
    of_relations: ClassVar[bool]

    @classmethod
    def check(cls, graph: TrainingGraph, options: SourceOptions) -> None:
        require_classes(graph, cls.name, relations=cls.of_relations)

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        self._classes = require_classes(graph, self.name, relations=self.of_relations)
        self._pools = members_of_classes(self._classes, graph.entities)
        self.members = self._pools.members


@SOURCES.register("typed")
class Typed(ClassSource):
    """Entities of the class that the relation requires, domain or range (Krompaß et al. 2015)."""

    needs = "classes, domain and range"
    name, of_relations = "typed", True

    def ranges(self, anchor: np.ndarray, relation: np.ndarray, answer: np.ndarray) -> Ranges:
        return self._pools.ranges(self._classes.required[relation].astype(np.int64))


@SOURCES.register("classes")
class SameClass(ClassSource):
    """Entities of the first class of the query's answer."""

    needs = "classes"
    name, of_relations = "classes", False

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        self._first = self._classes.first.astype(np.int64)

    def ranges(self, anchor: np.ndarray, relation: np.ndarray, answer: np.ndarray) -> Ranges:
        return self._pools.ranges(self._first[answer])


@SOURCES.register("relational")
class Relational(PoolSource):
    """Answers of the anchor under other relations of the same direction (Kotnis, Nastase 2017).

    The entities that an anchor reaches are grouped by the only relation that leads there; entities reached by several
    relations come last. The pool of a relation is all of them except its own group.
    """

    bytes_per_query = 120  # links, keys and their sorting, while groups are built

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        triples = graph.triples
        keys, sole, members = [], [], []
        for direction, (anchor, answer) in enumerate(((0, 2), (2, 0))):
            pair = triples[:, anchor].astype(np.int64) * graph.entities + triples[:, answer]
            links = np.unique(np.stack([pair, triples[:, 1].astype(np.int64)], axis=1), axis=0)
            unique, first, relations = np.unique(links[:, 0], return_index=True, return_counts=True)
            keys.append(unique // graph.entities * 2 + direction)
            sole.append(np.where(relations == 1, links[first, 1], graph.relations))
            members.append(unique % graph.entities)
        key, alone, member = (np.concatenate(parts) for parts in (keys, sole, members))
        order = np.lexsort((member, alone, key))
        self.members = member[order].astype(np.int32)
        self._groups = (key * (graph.relations + 1) + alone)[order]
        self._offsets = np.searchsorted(key[order], np.arange(2 * graph.entities + 1))

    def ranges(self, anchor: np.ndarray, relation: np.ndarray, answer: np.ndarray) -> Ranges:
        direction, own = np.divmod(relation, self.graph.relations)
        key = anchor * 2 + direction
        start, end = self._offsets[key], self._offsets[key + 1]
        group = key * (self.graph.relations + 1) + own
        low, high = np.searchsorted(self._groups, group), np.searchsorted(self._groups, group + 1)
        return Ranges(start, end - start - (high - low), low - start, high - low)


def members_of_classes(classes: Classes, entities: int) -> Pools:
    """Return one pool per class."""
    return Pools.from_pairs(classes.members, row_of_each(classes.offsets), len(classes.labels), entities)


def require_classes(graph: TrainingGraph, source: str, *, relations: bool) -> Classes:
    """Return the graph's classes.

    Raises:
        SourceError: the graph lacks the required classes.
    """
    classes = graph.classes
    if classes is None or not classes.has_entities:
        raise SourceError(
            f"negatives.source: {source} needs classes of entities, and this store has none. Put a file "
            "entity_types.tsv (entity, class) beside the triples and build the store again with `distkg prepare`."
        )
    if relations and not classes.has_relations:
        raise SourceError(
            f"negatives.source: {source} needs domain and range of relations, and this store has none. Put a file "
            "relation_domain_range.tsv (relation, class of heads, class of tails) beside the triples and build "
            "the store again with `distkg prepare`; or use negatives.source: classes, which needs classes of "
            "entities alone."
        )
    return classes
