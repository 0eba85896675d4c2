"""A source as those who draw for others hold it: it answers requests, with vectors that were published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distkg.kernels.similarity import Similarity
from distkg.negatives.ahead import Reply, Request
from distkg.negatives.base import SOURCES, Queries, make_source
from distkg.negatives.training_graph import TrainingGraph
from distkg.sharding.ranks import Ranks


class PublishedModel:
    """A ``LiveModel`` of published candidate vectors, and of those vectors that the current request brought.

    Attributes:
        version: step at which the vectors were published; -1 before any were.
    """

    def __init__(self, similarity: Similarity, entities: int, relations: int) -> None:
        self.ranks, self.first = Ranks.single(), 0
        self.similarity, self.entities = similarity, entities
        self._relations = relations
        self.version = -1
        self._rows = torch.empty(0)
        self._keys = torch.empty(0, dtype=torch.int64)
        self._brought = torch.empty(0)

    def publish(self, version: int, shards: Sequence[tuple[int, NDArray[np.float32]]]) -> None:
        """Take over the vectors of all entities: pieces (first entity, float32 [rows, C]) in any order."""
        pieces = [torch.from_numpy(rows) for _, rows in sorted(shards, key=lambda shard: shard[0])]
        self._rows = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        self.version = version

    def bring(self, queries: Queries, vectors: NDArray[np.float32]) -> None:
        """Vectors [b, Q] of these queries, for ``query``."""
        self._keys, order = self._key(queries.anchor, queries.relation).sort()
        self._brought = torch.from_numpy(np.array(vectors))[order]

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        return self._brought[torch.searchsorted(self._keys, self._key(anchor, relation))]

    def candidates(self, entities: Tensor) -> Tensor:
        return self._rows[entities]

    def own_candidates(self) -> Tensor:
        return self._rows

    def _key(self, anchor: Tensor, relation: Tensor) -> Tensor:
        return anchor * (2 * self._relations) + relation


class SourceHost:
    """Answers requests by one source."""

    def __init__(self, graph: TrainingGraph, name: str, options: Mapping[str, Any], similarity: Similarity) -> None:
        self._source = make_source(name, options, graph)
        self._needs_vectors = SOURCES[name].looks_at != "nothing"
        self._model = PublishedModel(similarity, graph.entities, graph.relations)
        self._source.attach(self._model)

    def publish(self, version: int, shards: Sequence[tuple[int, NDArray[np.float32]]]) -> None:
        """The vectors of all entities as of step ``version``."""
        self._model.publish(version, shards)

    def draw(self, request: Request) -> Reply | None:
        """Negatives; None where no vectors were published yet and the source needs them."""
        if self._needs_vectors and self._model.version < 0:
            return None
        queries = Queries(*torch.from_numpy(np.array(request.queries)).T.contiguous())
        if request.vectors is not None:
            self._model.bring(queries, request.vectors)
        self._source.advance(request.moment)
        drawn = self._source.draw(queries, request.count, torch.Generator().manual_seed(request.seed))
        left_out = None if drawn.left_out is None else drawn.left_out.numpy()
        version = self._model.version if self._needs_vectors else request.version
        return Reply(drawn.entities.numpy().astype(np.int32), left_out, version)
