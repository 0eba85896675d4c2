"""Negative source hosted by an actor, which draws for requests with published vectors instead of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distkg.kernels.nearest_neighbours import RowBlocks
from distkg.kernels.scores.similarity import Similarity
from distkg.negatives.base import SOURCES, Negatives, NegativeSource, Queries, make_source
from distkg.negatives.prefetch.messages import Reply, Request
from distkg.negatives.prefetch.pool_client import CANDIDATES, RELATIONS, Arrays
from distkg.negatives.prefetch.pool_events import BrokenDrawError
from distkg.negatives.prefetch.published_rows import PublishedRows
from distkg.negatives.training_graph import TrainingGraph
from distkg.sharding.ranks import Ranks


class PublishedModel:
    """``ModelView`` of published vectors and of the vectors in the current request.

    Attributes:
        version: step at which the vectors were published; -1 before the first publication.
    """

    def __init__(self, similarity: Similarity, entities: int, relations: int, device: str = "cpu") -> None:
        self.ranks, self.first = Ranks.single(device), 0
        self.similarity, self.entities = similarity, entities
        self._relations = relations
        self.version = -1
        self._rows, self._relation_rows = PublishedRows(), torch.empty(0)
        self._keys = torch.empty(0, dtype=torch.int64)
        self._brought = torch.empty(0)

    def publish(self, version: int, shards: Sequence[tuple[int, Arrays]]) -> None:
        """Set the vectors of all entities, and of relations if the shards have them.

        Args:
            shards: pairs of first entity and arrays, entity vectors float32 or float16 [rows, C], in any order; not
                copied.

        Raises:
            ValueError: the shards do not hold every entity exactly once.
        """
        in_order = sorted(((first, arrays[CANDIDATES]) for first, arrays in shards), key=lambda shard: shard[0])
        ends = np.cumsum([0, *(len(rows) for _, rows in in_order)])
        if [first for first, _ in in_order] != ends[:-1].tolist() or ends[-1] != self.entities:
            held = ", ".join(f"{first} to {first + len(rows) - 1}" for first, rows in in_order)
            raise ValueError(f"published vectors are of the entities {held}; expected are 0 to {self.entities - 1}")
        self._rows = PublishedRows([rows for _, rows in in_order], self.ranks.device)
        if RELATIONS in shards[0][1]:
            self._relation_rows = torch.from_numpy(np.array(shards[0][1][RELATIONS])).to(self.ranks.device)
        self.version = version

    def forget(self) -> None:
        """Drop all published vectors."""
        self._rows, self._relation_rows, self.version = PublishedRows(), torch.empty(0), -1

    def set_request_vectors(self, request: Request, queries: Queries) -> None:
        """Set the vectors in a request: those of its queries, for ``query``, and those of its answers, which replace
        older published ones."""
        if request.query_vectors is not None:
            self._keys, order = self._key(queries.anchor, queries.relation).sort()
            self._brought = torch.from_numpy(np.array(request.query_vectors))[order].to(self.ranks.device)
        if request.answer_vectors is not None:
            brought = torch.from_numpy(np.array(request.answer_vectors)).to(self.ranks.device)
            self._rows.replace(queries.answer.to(self.ranks.device), brought)

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        place = torch.searchsorted(self._keys, self._key(anchor, relation))
        return self._brought[place.to(self.ranks.device)]

    def candidates(self, entities: Tensor) -> Tensor:
        return self._rows[entities]

    def relations(self) -> Tensor:
        return self._relation_rows

    def own_candidates(self) -> RowBlocks:
        return self._rows

    def _key(self, anchor: Tensor, relation: Tensor) -> Tensor:
        return anchor * (2 * self._relations) + relation


class HostedSampler:
    """``HostedSource`` that draws negatives.

    Each worker has a separate copy of the source's state, so that its negatives do not depend on the order of requests
    of different workers.
    """

    def __init__(
        self,
        graph: TrainingGraph,
        name: str,
        options: Mapping[str, Any],
        similarity: Similarity,
        device: str = "cpu",
    ) -> None:
        """Create the source; raises as ``make_source``."""
        self.action = f"source {name}, drawing negatives"
        self._make = partial(make_source, name, options, graph)
        self._requires_vectors = SOURCES[name].requires != "nothing"
        self._model = PublishedModel(similarity, graph.entities, graph.relations, device)
        self._sources = {0: self._make()}
        self._arriving: dict[tuple[int, int], dict[int, tuple[int, Arrays]]] = {}

    def publish(self, version: int, rank: int, ranks: int, first: int, arrays: Arrays) -> None:
        """Add one worker's shard of the vectors of step ``version``, which are used once all shards have arrived."""
        pieces = self._arriving.setdefault((version, ranks), {})
        pieces[rank] = first, arrays
        if len(pieces) == ranks:
            self._arriving = {key: shards for key, shards in self._arriving.items() if key[0] > version}
            self._model.publish(version, list(pieces.values()))

    def reply(self, request: Request) -> Reply | None:
        """Draw the negatives of a request; None if the source needs vectors and none were published yet.

        Raises:
            BrokenDrawError: the source returned something other than the requested negatives.
        """
        if self._requires_vectors and self._model.version < 0:
            return None
        queries = Queries(*torch.from_numpy(np.array(request.queries)).T.contiguous())
        self._model.set_request_vectors(request, queries)
        source = self._source_of(request.rank)
        source.advance(request.moment)
        drawn = source.draw(queries, request.count, torch.Generator().manual_seed(request.seed))
        if not isinstance(drawn, Negatives):
            raise BrokenDrawError(f"a {type(drawn).__name__} was returned, where Negatives were expected")
        if not isinstance(drawn.entities, Tensor):
            raise BrokenDrawError(f"entities is a {type(drawn.entities).__name__}, where a tensor was expected")
        reply = Reply.of(drawn, self._model.version if self._requires_vectors else request.version)
        fault = reply.fault(len(queries), request.count, self._model.entities)
        if fault is not None:
            raise BrokenDrawError(fault)
        return reply

    def forget(self) -> None:
        self._model.forget()
        self._arriving, self._sources = {}, {0: self._make()}

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Return the mean of the learned weights of its sources; empty if they learn nothing."""
        learned = [source.weights() for source in self._sources.values()]
        learned = [weights for weights in learned if weights]
        if not learned:
            return {}
        return {
            name: np.mean([weights[name].detach().cpu().numpy() for weights in learned], axis=0) for name in learned[0]
        }

    def blend(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Average the learned weights of its sources with those of another host."""
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
        for source in self._sources.values():
            source.blend(tensors)

    def _source_of(self, rank: int) -> NegativeSource:
        place = rank if self._requires_vectors else 0
        if place not in self._sources:
            self._sources[place] = self._make()
        self._sources[place].attach(self._model)
        return self._sources[place]
