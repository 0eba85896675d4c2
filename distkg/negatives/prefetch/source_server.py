"""Server of the requests to one hosted source, which returns errors as events and separates groups of workers."""

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
    """Source that an actor hosts, which replies to requests with the published vectors of workers.

    Attributes:
        action: description of a reply's computation in messages, such as "source cached, drawing negatives".
    """

    action: str

    def publish(self, version: int, rank: int, ranks: int, first: int, arrays: Arrays) -> None:
        """Add the part of the model at step ``version`` that the worker ``rank`` of ``ranks`` has published with
        ``Pool.publish``."""
        ...

    def reply(self, request: RequestIn) -> ReplyOut | None:
        """Return the reply to a request; None if the vectors that it needs were not all published yet.

        Raises:
            BrokenDrawError: the source returned something other than was requested.
        """
        ...

    def forget(self) -> None:
        """Drop all published vectors and all state."""
        ...

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Return the learned weights; empty if it learns nothing."""
        ...

    def blend(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Average the learned weights with those of another host."""
        ...


class SourceServer(Generic[RequestT, ReplyT]):
    """Server side of asynchronous negative sampling: runs one hosted source on behalf of workers.

    Messages name the group of workers that sends them, its ``incarnation``. When Ray Train replaces a group, the next
    group may continue from an earlier step with another number of workers: all state of the former group is dropped,
    and so are its late messages. A former group sends nothing after its successor has begun, so a new incarnation
    always replaces the current one.

    Attributes:
        hosted: hosted source.
    """

    def __init__(self, hosted: HostedSource[RequestT, ReplyT]) -> None:
        self.hosted = hosted
        self._incarnation: str | None = None
        self._former: set[str] = set()

    def publish(self, version: int, rank: int, ranks: int, first: int, arrays: Arrays, incarnation: str = "") -> None:
        """Add one worker's part of the model of step ``version``, as ``HostedSource.publish``; ignored for a former
        group of workers."""
        if self._serves(incarnation):
            self.hosted.publish(version, rank, ranks, first, arrays)

    def answer(self, request: RequestT, incarnation: str = "") -> ReplyT | PoolEvent | None:
        """Return ``HostedSource.reply``, None for a former group of workers, or the event of an error of the source."""
        try:
            return self.hosted.reply(request) if self._serves(incarnation) else None
        except Exception as error:
            return PoolEvent.of_error(error, f"{self.hosted.action} for step {request.number}")

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Return the learned weights of the hosted source."""
        return self.hosted.weights()

    def blend(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Average the learned weights of the hosted source with those of another host."""
        self.hosted.blend(weights)

    def _serves(self, incarnation: str) -> bool:
        """Return whether a message is from the current group of workers; a new group becomes the current one."""
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
    """Create the server of a source for an embedding model, by the source's ``hosted_reply``; raises as
    ``make_source``."""
    if SOURCES[name].hosted_reply == "similarities":
        return SourceServer(RelationMiner.of_vectors(name, options, graph))
    return SourceServer(HostedSampler(graph, name, options, similarity, device))
