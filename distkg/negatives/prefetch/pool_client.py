"""Client of a pool of actors: one worker's requests of one hosted source, and the count of what became of them.

Nothing here knows who replies, nor what: ``distkg.cluster`` has actors do it, and sources read the replies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from distkg.config import PoolConfig
from distkg.negatives.prefetch.pool_events import Missing, PoolEvent, PoolEventLog
from distkg.negatives.prefetch.prefetch_stats import Deliveries

Arrays = Mapping[str, NDArray[np.float32]]
"""What a worker publishes of a model, by name."""

CANDIDATES, RELATIONS = "candidates", "relations"
"""Names of published vectors: of entities in the role of answers [rows, C], and of relations [R, w]."""


class Numbered(Protocol):
    """A request of any hosted source."""

    @property
    def number(self) -> int:
        """Tells it from others of the same worker to the same source."""
        ...


RequestT = TypeVar("RequestT", bound=Numbered)
ReplyT = TypeVar("ReplyT")
RequestIn = TypeVar("RequestIn", bound=Numbered, contravariant=True)
ReplyOut = TypeVar("ReplyOut", covariant=True)


class Pool(Protocol[RequestIn, ReplyOut]):
    """Replies to this rank's requests of one hosted source, elsewhere."""

    @property
    def rank(self) -> int:
        """Of the worker that asks."""
        ...

    @property
    def restarts(self) -> int:
        """How often an actor was lost and replaced."""
        ...

    @property
    def hung(self) -> int:
        """How often this rank had an actor killed because it did not answer."""
        ...

    @property
    def gone(self) -> bool:
        """Whether no actor that hosts the source will ever answer again."""
        ...

    def take_events(self) -> Sequence[PoolEvent]:
        """What happened since the last call: failed sources, lost and hung actors."""
        ...

    def ask(self, requests: Sequence[RequestIn]) -> int:
        """Hand over requests, their numbers rising, without waiting: how many of them, from the first. The others are
        not taken up, as too many are under way already."""
        ...

    def room(self) -> int:
        """How many requests it would take up now."""
        ...

    def arrived(self, number: int) -> bool:
        """Whether ``take`` would not wait: the reply to a request is here, or never will be."""
        ...

    def take(self, number: int, timeout: float | None) -> ReplyOut | Missing | None:
        """The reply to a request, which is then forgotten, or why there never will be one; None where it is not there
        after ``timeout`` seconds or was never asked. Without a timeout it waits as long as there is hope."""
        ...

    def forget(self, number: int) -> None:
        """The reply to a request is not wanted any more."""
        ...

    def publish(self, version: int, first: int, arrays: Arrays, *, wait: bool) -> None:
        """Let the hosts of the source see this rank's part of a model; the rows of ``CANDIDATES`` are those of the
        entities from ``first`` on.

        With ``wait`` they have it when this returns.
        """
        ...


PoolOf = Callable[[str], Pool[Any, Any]]
"""Key of a hosted source → the pool, as that source asks it."""


class PoolClient(Generic[RequestT, ReplyT]):
    """One worker's requests of one hosted source, and the count of what became of them.

    Attributes:
        pool: to which requests go.
        how: to ask it.
        deliveries: what became of the queries that replies were wanted for.
        log: of what happened to the source and to the actors.
    """

    def __init__(self, pool: Pool[RequestT, ReplyT], how: PoolConfig) -> None:
        self.pool, self.how = pool, how
        self.deliveries = Deliveries()
        self.log = PoolEventLog(how.on_error)

    @property
    def restarts(self) -> int:
        """How often an actor was lost and replaced, as this rank has seen it."""
        return self.pool.restarts

    @property
    def hung(self) -> int:
        """How often this rank had an actor killed because it did not answer."""
        return self.pool.hung

    def heed_events(self) -> None:
        """Take note of what happened since the last call.

        Raises:
            NegativePoolError: a source failed, and ``negatives.pool.on_error`` is ``fail``.
        """
        self.log.heed(self.pool.take_events())

    def take(self, number: int) -> ReplyT | Missing | None:
        """As ``Pool.take``, with the configured timeout.

        Raises:
            NegativePoolError: as ``heed_events``.
        """
        reply = self.pool.take(number, None if self.how.sync else self.how.timeout)
        self.heed_events()
        return reply

    def count_broken(self, text: str, queries: int) -> None:
        """Count queries whose reply is broken, and warn with ``text``."""
        self.deliveries.add("broken", queries)
        self.log.warn(PoolEvent("broken", text))

    def count_reply(self, age: int, queries: int, too_old: str = "old") -> bool:
        """Count queries that have a reply made from weights of ``age`` steps ago: whether it can be used, or is counted
        as ``too_old``."""
        if not 0 <= age <= self.how.max_age:
            self.deliveries.add(too_old, queries)
            return False
        self.deliveries.add("delivered", queries)
        self.deliveries.ages.append(age)
        return True

    def take_deliveries(self) -> Deliveries:
        """What became of the queries since the last call."""
        taken, self.deliveries = self.deliveries, Deliveries()
        return taken
