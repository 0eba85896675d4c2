"""Sources that draw from all entities."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distkg.data.store.relation_categories import count_queries
from distkg.kernels.jit import kernel, on_cpu
from distkg.negatives.base import SOURCES, Negatives, Queries, SourceOptions, TensorSource
from distkg.negatives.training_graph import TrainingGraph
from distkg.randomness import RandomNumbers
from distkg.sharding.device_copies import DeviceCopies


@SOURCES.register("uniform")
class Uniform(TensorSource):
    """All entities with equal probability, or those that training has in memory."""

    needs = "nothing"

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        self.restrict(None)

    def restrict(self, ranges: np.ndarray | None) -> None:
        ranges = np.array([[0, self.entities]]) if ranges is None else ranges
        ends = np.cumsum(ranges[:, 1] - ranges[:, 0])
        self._size, self._ends = int(ends[-1]), torch.from_numpy(ends)
        self._offsets = torch.from_numpy(ranges[:, 1] - ends)  # from a place in the ranges to its entity

    @classmethod
    def depends_on_query(cls, options: SourceOptions) -> bool:
        return False

    def draw_on(self, queries: Queries, count: int, numbers: RandomNumbers) -> Negatives:
        places = numbers.integers(self._size, (len(queries), count))
        if self._size == self.entities:
            return Negatives(places)
        ends, offsets = self._ends.to(places.device), self._offsets.to(places.device)
        return Negatives(places + offsets[torch.searchsorted(ends, places, right=True)])

    def pool_sizes(self, queries: Queries) -> Tensor:
        return torch.full((len(queries),), self._size)


@SOURCES.register("degree")
class Degree(TensorSource):
    """Entities in proportion to their occurrences in training.

    Entities without occurrences are never drawn.
    """

    @classmethod
    def depends_on_query(cls, options: SourceOptions) -> bool:
        return False

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        self._ends = np.cumsum(graph.degrees)  # uniforms in [ends[e - 1], ends[e]) are entity e
        self._copies = DeviceCopies(torch.from_numpy(self._ends))
        self._seen = int((graph.degrees > 0).sum())

    def draw_on(self, queries: Queries, count: int, numbers: RandomNumbers) -> Negatives:
        uniforms = numbers.integers(int(self._ends[-1]), (len(queries), count))
        if not on_cpu(uniforms):
            return Negatives(torch.searchsorted(self._copies.on(uniforms.device), uniforms, right=True))
        _owners(self._ends, uniforms.numpy())
        return Negatives(uniforms)

    def pool_sizes(self, queries: Queries) -> Tensor:
        return torch.full((len(queries),), self._seen)


@kernel
def _owners(ends: np.ndarray, uniforms: np.ndarray) -> None:
    """Replace uniforms int64 [b, K] by the entities in whose range they are."""
    for i in range(uniforms.shape[0]):
        for k in range(uniforms.shape[1]):
            uniforms[i, k] = np.searchsorted(ends, uniforms[i, k], side="right")


@SOURCES.register("bernoulli")
class Bernoulli(TensorSource):
    """Uniform negatives, with fewer on the side that has many answers (TransH, Wang et al. 2014).

    The share tph / (tph + hpt) of a triple's negatives replaces the head, where tph is the mean number of tails per
    head of its relation and hpt that of heads per tail. The side with the larger share keeps all of its negatives;
    those of the other side are masked at random until the shares are right (section 4.2 of the paper).
    """

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        self.head_share = head_share(graph.triples, graph.relations)
        shares = np.concatenate([1 - self.head_share, self.head_share])  # of tails for r, of heads for r⁻¹
        largest = np.tile(np.maximum(self.head_share, 1 - self.head_share), 2)
        self._kept = DeviceCopies(torch.from_numpy((shares / largest).astype(np.float32)))

    def draw_on(self, queries: Queries, count: int, numbers: RandomNumbers) -> Negatives:
        shape = len(queries), count
        entities, chance = numbers.integers(self.entities, shape), numbers.floats(shape)
        return Negatives(entities, chance >= self._kept.on(chance.device)[queries.relation][:, None])


def head_share(triples: np.ndarray, relations: int) -> np.ndarray:
    """Return tph / (tph + hpt) of each relation, float64 [R]; 0.5 for a relation without triples."""
    tails_per_head, heads_per_tail = count_queries(lambda: [triples], len(triples), relations).answers_per_query()
    both = tails_per_head + heads_per_tail
    return np.divide(tails_per_head, both, out=np.full(relations, 0.5), where=both > 0)
