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
from distkg.kernels.jit import kernel, on_cpu
from distkg.negatives.base import SOURCES, Negatives, Queries, RunSizes, SourceError, SourceOptions, TensorSource
from distkg.negatives.training_graph import TrainingGraph
from distkg.randomness import RandomNumbers
from distkg.sharding.device_copies import DeviceCopies


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

    def on_devices(self) -> tuple[DeviceCopies, DeviceCopies]:
        """Return members and offsets as tensors."""
        return DeviceCopies(torch.from_numpy(self.members)), DeviceCopies(torch.from_numpy(self.offsets))


@dataclass(frozen=True)
class Ranges:
    """Pool of each query: ``size`` members from ``start`` on, without the ``gap`` members from ``gap_at`` on.

    Attributes: int64 [b] each; ``size`` excludes the gap, ``gap_at`` is relative to ``start``.
    """

    start: Tensor
    size: Tensor
    gap_at: Tensor
    gap: Tensor


class PoolSource(TensorSource):
    """Base class of sources with one pool per query. Subclasses define its range.

    Attributes:
        members: int32, entities of all pools.
    """

    Options = PoolOptions
    bytes_per_query: ClassVar[int] = 0
    members: DeviceCopies

    @classmethod
    def memory(cls, options: SourceOptions, sizes: RunSizes) -> int:
        return sizes.queries * cls.bytes_per_query

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        assert isinstance(options, PoolOptions)
        self.integrate = options.integrate

    @abstractmethod
    def ranges(self, queries: Queries) -> Ranges:
        """Return the pools of queries as ranges of ``members``, on the device of the queries."""

    def draw_on(self, queries: Queries, count: int, numbers: RandomNumbers) -> Negatives:
        ranges = self.ranges(queries)
        uniforms = numbers.integers(1 << 62, (len(queries), count))
        members = self.members.on(uniforms.device)
        if not on_cpu(uniforms):
            return reference_take(ranges, members, self.entities, self.integrate, uniforms)
        mask = torch.zeros(uniforms.shape, dtype=torch.bool)
        start, size, gap_at, gap = (part.numpy() for part in (ranges.start, ranges.size, ranges.gap_at, ranges.gap))
        arrays = start, size, gap_at, gap, members.numpy()
        _take(*arrays, self.entities, self.integrate, uniforms.numpy(), mask.numpy())
        return Negatives(uniforms, mask if bool(mask.any()) else None)

    def pool_sizes(self, queries: Queries) -> Tensor:
        return self.ranges(queries).size


def whole_pools(offsets: Tensor, pool: Tensor) -> Ranges:
    """Return the ranges of pools int64 [b], by the offsets of `Pools`; -1 stands for an empty pool."""
    start, end = offsets[pool], offsets[pool + 1]
    return Ranges(start, (end - start).masked_fill(pool < 0, 0), torch.zeros_like(start), torch.zeros_like(start))


def reference_take(ranges: Ranges, members: Tensor, entities: int, integrate: bool, uniforms: Tensor) -> Negatives:
    """Map random numbers int64 [b, K] to entities as ``_take`` does, on any device; the mask is never None."""
    size, gap_at, gap = (part[:, None] for part in (ranges.size, ranges.gap_at, ranges.gap))
    column = torch.arange(uniforms.shape[1], device=uniforms.device)
    whole = (size < uniforms.shape[1]) & integrate
    place = torch.where(whole, column, uniforms % size.clamp_min(1))
    place = ranges.start[:, None] + place + torch.where(place >= gap_at, gap, 0)
    rest = whole & (column >= size)
    mask = (size == 0) & ~rest
    taken = members[place.clamp_max(len(members) - 1)].long() if len(members) else torch.zeros_like(place)
    return Negatives(torch.where(rest, uniforms % entities, taken.masked_fill(mask, 0)), mask)


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
        pools = Pools.from_pairs(relation, answer, 2 * graph.relations, graph.entities)
        self.members, self._offsets = pools.on_devices()

    def ranges(self, queries: Queries) -> Ranges:
        return whole_pools(self._offsets.on(queries.relation.device), queries.relation)


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
        self.members, self._offsets = members_of_classes(self._classes, graph.entities).on_devices()
        self._class_of = DeviceCopies(torch.from_numpy(self._classes_by_id().astype(np.int64)))

    @abstractmethod
    def _classes_by_id(self) -> NDArray[np.int32]:
        """Return the class of each relation or entity; -1 if it has none."""

    def _pools_of(self, ids: Tensor) -> Ranges:
        """Return the pools of the classes of relations or entities."""
        return whole_pools(self._offsets.on(ids.device), self._class_of.on(ids.device)[ids])


@SOURCES.register("typed")
class Typed(ClassSource):
    """Entities of the class that the relation requires, domain or range (Krompaß et al. 2015)."""

    needs = "classes, domain and range"
    name, of_relations = "typed", True

    def _classes_by_id(self) -> NDArray[np.int32]:
        return self._classes.required

    def ranges(self, queries: Queries) -> Ranges:
        return self._pools_of(queries.relation)


@SOURCES.register("classes")
class SameClass(ClassSource):
    """Entities of the first class of the query's answer."""

    needs = "classes"
    name, of_relations = "classes", False

    def _classes_by_id(self) -> NDArray[np.int32]:
        return self._classes.first

    def ranges(self, queries: Queries) -> Ranges:
        return self._pools_of(queries.answer)


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
        offsets = np.searchsorted(key[order], np.arange(2 * graph.entities + 1))
        self.members = DeviceCopies(torch.from_numpy(member[order].astype(np.int32)))
        self._groups = DeviceCopies(torch.from_numpy((key * (graph.relations + 1) + alone)[order]))
        self._offsets = DeviceCopies(torch.from_numpy(offsets))

    def ranges(self, queries: Queries) -> Ranges:
        device, relations = queries.anchor.device, self.graph.relations
        offsets, groups = self._offsets.on(device), self._groups.on(device)
        key = queries.anchor * 2 + (queries.relation >= relations)
        start, end = offsets[key], offsets[key + 1]
        group = key * (relations + 1) + queries.relation % relations
        low, high = torch.searchsorted(groups, group), torch.searchsorted(groups, group + 1)
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
