"""Counts of what became of the requests to a pool."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Deliveries:
    """What became of the replies that queries were drawn by, or should have been, in queries.

    Attributes:
        delivered: drawn by a reply (negatives, or a table of similar relations); all others in the step alone.
        late: the reply was not there in time.
        old: it was made from weights older than allowed.
        broken: it was not what was asked for.
        refused: never asked, as too many requests were under way, or no actor was there to be asked.
        failed: the source raised.
        lost: owed by an actor that died.
        ages: steps from the weights that a reply was made from to the step, one for each draw by a reply.
    """

    delivered: int = 0
    late: int = 0
    old: int = 0
    broken: int = 0
    refused: int = 0
    failed: int = 0
    lost: int = 0
    ages: list[int] = field(default_factory=list)

    def add(self, reason: str, queries: int) -> None:
        """Count queries under the attribute named ``reason``."""
        setattr(self, reason, getattr(self, reason) + queries)
