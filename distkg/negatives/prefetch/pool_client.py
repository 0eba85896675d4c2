"""Client of a pool of actors: one worker's requests to one hosted source, and statistics of the replies.

The client does not depend on Ray or on the content of replies: ``distkg.cluster`` implements the pool with actors, and
sources read the replies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from distkg.config import PoolConfig
from distkg.negatives.prefetch.pool_events import Missing, PoolEvent, PoolEventLog
from distkg.negatives.prefetch.prefetch_stats import Deliveries

Vectors = np.float32 | np.float16
Arrays = Mapping[str, NDArray[Any]]
"""Published arrays of a model, by name: float32, or float16 for sources that only compare."""

CANDIDATES, RELATIONS = "candidates", "relations"
"""Names of published vectors: of entities as candidate answers [rows, C], and of relations [R, w]."""


class Numbered(Protocol):
    """Request to any hosted source."""

    @property
    def number(self) -> int:
        """Number that is unique among the requests of one worker to one source."""
        ...


RequestT = TypeVar("RequestT", bound=Numbered)
ReplyT = TypeVar("ReplyT")
RequestIn = TypeVar("RequestIn", bound=Numbered, contravariant=True)
ReplyOut = TypeVar("ReplyOut", covariant=True)


class Pool(Protocol[RequestIn, ReplyOut]):
    """Interface to the actors that host one source, for the requests of this rank."""

    @property
    def rank(self) -> int:
        """Rank of the requesting worker."""
        ...

    @property
    def restarts(self) -> int:
        """Number of actors that were lost and replaced."""
        ...

    @property
    def hung(self) -> int:
        """Number of actors that this rank had killed because they did not answer."""
        ...

    @property
    def gone(self) -> bool:
        """True if no actor that hosts the source will ever answer again."""
        ...

    def take_events(self) -> Sequence[PoolEvent]:
        """Return and clear the events since the last call: failed sources, lost and hung actors."""
        ...

    def ask(self, requests: Sequence[RequestIn]) -> int:
        """Send requests with increasing numbers, without waiting, and return how many, from the first, were sent.

        The others are refused, because too many are pending.
        """
        ...

    def room(self) -> int:
        """Return the number of requests that ``ask`` would send now."""
        ...

    def arrived(self, number: int) -> bool:
        """Return whether ``take`` would return at once, with a reply or the reason why there is none."""
        ...

    def take(self, number: int, timeout: float | None) -> ReplyOut | Missing | None:
        """Return and forget the reply to a request.

        Args:
            timeout: maximum seconds to wait; None waits until the reply arrives or is lost.

        Returns:
            The reply, or the reason why there will be none; None if it is late or was never requested.
        """
        ...

    def forget(self, number: int) -> None:
        """Discard the reply to a request."""
        ...

    def publish(self, version: int, first: int, arrays: Arrays, *, wait: bool) -> None:
        """Publish this rank's part of a model to the hosts of the source.

        Args:
            version: step of the training.
            first: entity of the first row of ``CANDIDATES``.
            arrays: published arrays by name; the pool copies them before this returns.
            wait: return only after all hosts have received them.
        """
        ...


PoolOf = Callable[[str], Pool[Any, Any]]
"""Function from the key of a hosted source to the pool for its requests."""


class PoolClient(Generic[RequestT, ReplyT]):
    """Client of a pool for one worker's requests to one hosted source, with statistics of the replies.

    Attributes:
        pool: pool that requests are sent to.
        how: settings of the pool.
        deliveries: statistics of the replies, in queries.
        log: log of events of the source and the actors.
    """

    def __init__(self, pool: Pool[RequestT, ReplyT], how: PoolConfig) -> None:
        self.pool, self.how = pool, how
        self.deliveries = Deliveries()
        self.log = PoolEventLog(how.on_error)

    @property
    def restarts(self) -> int:
        """Number of actors that were lost and replaced, as seen by this rank."""
        return self.pool.restarts

    @property
    def hung(self) -> int:
        """Number of actors that this rank had killed because they did not answer."""
        return self.pool.hung

    def heed_events(self) -> None:
        """Log the events of the pool since the last call.

        Raises:
            NegativePoolError: a source failed, and ``negatives.pool.on_error`` is ``fail``.
        """
        self.log.heed(self.pool.take_events())

    def take(self, number: int) -> ReplyT | Missing | None:
        """Return and forget the reply to a request as ``Pool.take``, with the configured timeout.

        Raises:
            NegativePoolError: as for ``heed_events``.
        """
        reply = self.pool.take(number, None if self.how.sync else self.how.timeout)
        self.heed_events()
        return reply

    def count_broken(self, text: str, queries: int) -> None:
        """Count queries whose reply is broken, and warn with ``text``."""
        self.deliveries.add("broken", queries)
        self.log.warn(PoolEvent("broken", text))

    def count_reply(self, age: int, queries: int, too_old: str = "old") -> bool:
        """Count queries with a reply computed from weights of ``age`` steps ago, and return whether it can be used.

        A reply older than ``max_age`` is counted as ``too_old``.
        """
        if not 0 <= age <= self.how.max_age:
            self.deliveries.add(too_old, queries)
            return False
        self.deliveries.add("delivered", queries)
        self.deliveries.ages.append(age)
        return True

    def take_deliveries(self) -> Deliveries:
        """Return and reset the statistics since the last call."""
        deliveries, self.deliveries = self.deliveries, Deliveries()
        return deliveries
