"""A source that an actor hosts: it compares the relations of a graph, and replies with the table of those alike.

Every worker publishes the same weights at the same step and asks for itself, so none depends on another; an actor
compares once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distkg.negatives.base import parse_source_options
from distkg.negatives.kmas.relation_similarity import AlikeOptions, RelationTable, table_of
from distkg.negatives.prefetch.pool_client import RELATIONS, Arrays
from distkg.negatives.training_graph import TrainingGraph

VectorsOf = Callable[[int, Arrays], Tensor]
"""Version and weights → a vector of each relation, float32 [R, w]."""


@dataclass(frozen=True)
class TableRequest:
    """Asks for the table of a graph's relations.

    Attributes:
        number: step of the weights by which they are compared, which were published before.
        rank: of the worker that asks, and has published them.
    """

    number: int
    rank: int


@dataclass
class _PublishedWeights:
    version: int
    arrays: Arrays
    table: RelationTable | None = None


class RelationMiner:
    """A ``HostedSource`` that compares relations: its replies are tables."""

    action = "comparing relations"

    def __init__(self, graph: TrainingGraph, options: AlikeOptions, vectors_of: VectorsOf) -> None:
        self._usable, self._options, self._vectors_of = usable_relations(graph), options, vectors_of
        self._published: dict[int, _PublishedWeights] = {}  # by rank: one may be a table ahead of another

    @classmethod
    def of_vectors(cls, name: str, options: Mapping[str, Any], graph: TrainingGraph) -> RelationMiner:
        """The miner for a source of that name, by the vectors that a model has of its relations; raises as
        ``parse_source_options``."""
        parsed = parse_source_options(name, options)
        assert isinstance(parsed, AlikeOptions)
        return cls(graph, parsed, _published_vectors)

    def publish(self, version: int, rank: int, ranks: int, first: int, arrays: Arrays) -> None:
        """Weights of step ``version``, which are the same on all workers."""
        # A group of workers that began anew may come to the same step with other weights.
        equal = (held for held in self._published.values() if held.version == version and _equal(held.arrays, arrays))
        self._published[rank] = next(equal, None) or _PublishedWeights(version, arrays)

    def reply(self, request: TableRequest) -> RelationTable | None:
        """The table by the latest weights of the worker that asks; None where it has published none."""
        held = self._published.get(request.rank)
        if held is None:
            return None
        if held.table is None:
            vectors = self._vectors_of(held.version, held.arrays)
            held.table = table_of(vectors, self._usable, self._options, held.version)
        return held.table

    def forget(self) -> None:
        self._published = {}

    def weights(self) -> dict[str, NDArray[np.float32]]:
        return {}

    def blend(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Nothing: it learns nothing."""


def _published_vectors(version: int, arrays: Arrays) -> Tensor:
    return torch.from_numpy(np.array(arrays[RELATIONS]))


def _equal(left: Arrays, right: Arrays) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def usable_relations(graph: TrainingGraph) -> Tensor:
    """Relations that have facts, and so answers of either side: bool [R]."""
    return torch.from_numpy(np.bincount(graph.triples[:, 1], minlength=graph.relations) > 0)
