"""Hosted source that compares the relations of a graph, and replies with a table of the most similar ones.

Every worker publishes the same weights at the same step and sends its own request, so that no worker depends on
another; an actor computes one table for all of them.
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
"""Function from version and weights to a vector of each relation, float32 [R, w]."""


@dataclass(frozen=True)
class TableRequest:
    """Request for the table of a graph's relations.

    Attributes:
        number: step of the published weights with which relations are compared.
        rank: rank of the requesting worker, which has published the weights.
    """

    number: int
    rank: int


@dataclass
class _PublishedWeights:
    version: int
    arrays: Arrays
    table: RelationTable | None = None


class RelationMiner:
    """``HostedSource`` that compares relations and replies with tables."""

    action = "comparing relations"

    def __init__(self, graph: TrainingGraph, options: AlikeOptions, vectors_of: VectorsOf) -> None:
        self._usable, self._options, self._vectors_of = usable_relations(graph), options, vectors_of
        self._published: dict[int, _PublishedWeights] = {}  # by rank, because ranks may be at different versions

    @classmethod
    def of_vectors(cls, name: str, options: Mapping[str, Any], graph: TrainingGraph) -> RelationMiner:
        """Create the miner of a source on published relation vectors; raises as ``parse_source_options``."""
        parsed = parse_source_options(name, options)
        assert isinstance(parsed, AlikeOptions)
        return cls(graph, parsed, _published_vectors)

    def publish(self, version: int, rank: int, ranks: int, first: int, arrays: Arrays) -> None:
        """Set a worker's weights of step ``version``, which are the same on all workers."""
        # A restarted group of workers may reach the same step with other weights.
        equal = (
            other for other in self._published.values() if other.version == version and _equal(other.arrays, arrays)
        )
        self._published[rank] = next(equal, None) or _PublishedWeights(version, arrays)

    def reply(self, request: TableRequest) -> RelationTable | None:
        """Return the table for the latest weights of the requesting worker; None if it has published none."""
        weights = self._published.get(request.rank)
        if weights is None:
            return None
        if weights.table is None:
            vectors = self._vectors_of(weights.version, weights.arrays)
            weights.table = table_of(vectors, self._usable, self._options, weights.version)
        return weights.table

    def forget(self) -> None:
        self._published = {}

    def weights(self) -> dict[str, NDArray[np.float32]]:
        return {}

    def blend(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Do nothing, because a miner has no learned weights."""


def _published_vectors(version: int, arrays: Arrays) -> Tensor:
    return torch.from_numpy(np.array(arrays[RELATIONS]))


def _equal(left: Arrays, right: Arrays) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def usable_relations(graph: TrainingGraph) -> Tensor:
    """Return which relations have facts, and therefore answers on both sides: bool [R]."""
    return torch.from_numpy(np.bincount(graph.triples[:, 1], minlength=graph.relations) > 0)
