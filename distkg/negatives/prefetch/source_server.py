"""Server of the requests of one hosted source: what it raises is returned, and groups of workers are kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Protocol

import numpy as np
from numpy.typing import NDArray

from distkg.kernels.scores.similarity import Similarity
from distkg.negatives.base import SOURCES
from distkg.negatives.kmas.relation_miner import RelationMiner
from distkg.negatives.prefetch.hosted_sampler import HostedSampler
from distkg.negatives.prefetch.pool_client import Arrays, ReplyOut, ReplyT, RequestIn, RequestT
from distkg.negatives.prefetch.pool_events import PoolEvent
from distkg.negatives.training_graph import TrainingGraph


class HostedSource(Protocol[RequestIn, ReplyOut]):
    """Replies to requests from what workers have published of their model.

    Attributes:
        action: what a reply takes, in messages: "source cached, drawing negatives".
    """

    action: str

    def publish(self, version: int, rank: int, ranks: int, first: int, arrays: Arrays) -> None:
        """Take over the part that one of so many workers has of the model at step ``version``, as of
        ``Pool.publish``."""
        ...

    def reply(self, request: RequestIn) -> ReplyOut | None:
        """The reply; None where not all that it takes was published yet.

        Raises:
            BrokenDrawError: the source returned something else than was requested.
        """
        ...

    def forget(self) -> None:
        """Hold nothing that was published or remembered, as at the start."""
        ...

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """What it has learned; empty where it learns nothing."""
        ...

    def blend(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Move what it has learned half of the way to the weights of another host."""
        ...


class SourceServer(Generic[RequestT, ReplyT]):
    """Answers requests by one source.

    Messages name the group of workers that sends them, its ``incarnation``. When Ray Train replaces a group, the next
    one may stand at an earlier step and have another number of workers: nothing of the former one is kept, and what
    still arrives from it is dropped. The order of arrival tells them apart: a group sends nothing after its successor
    has begun, so an incarnation that was left once never returns.

    Attributes:
        hosted: the source.
    """

    def __init__(self, hosted: HostedSource[RequestT, ReplyT]) -> None:
        self.hosted = hosted
        self._incarnation: str | None = None
        self._former: set[str] = set()

    def publish(self, version: int, rank: int, ranks: int, first: int, arrays: Arrays, incarnation: str = "") -> None:
        """One worker's part of the model of step ``version``, as of ``HostedSource.publish``."""
        if self._serves(incarnation):
            self.hosted.publish(version, rank, ranks, first, arrays)

    def answer(self, request: RequestT, incarnation: str = "") -> ReplyT | PoolEvent | None:
        """As ``HostedSource.reply``, and None for a former group of workers; what the source raises is returned."""
        try:
            return self.hosted.reply(request) if self._serves(incarnation) else None
        except Exception as error:
            return PoolEvent.of_error(error, f"{self.hosted.action} for step {request.number}")

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """As of ``HostedSource``."""
        return self.hosted.weights()

    def blend(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """As of ``HostedSource``."""
        self.hosted.blend(weights)

    def _serves(self, incarnation: str) -> bool:
        """Whether a message is of the present group of workers; the first one of a new group makes it the present."""
        if incarnation == self._incarnation:
            return True
        if incarnation in self._former:
            return False
        if self._incarnation is not None:
            self._former.add(self._incarnation)
            self.hosted.forget()
        self._incarnation = incarnation
        return True


def make_server(
    name: str, options: Mapping[str, Any], graph: TrainingGraph, similarity: Similarity, device: str = "cpu"
) -> SourceServer[Any, Any]:
    """The server of a source of an embedding, with the reply that the source declares; raises as ``make_source``."""
    if SOURCES[name].hosted_reply == "similarities":
        return SourceServer(RelationMiner.of_vectors(name, options, graph))
    return SourceServer(HostedSampler(graph, name, options, similarity, device))
