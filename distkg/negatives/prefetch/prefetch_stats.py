"""Statistics of the replies of a pool."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Deliveries:
    """Counts of queries by the outcome of their replies.

    Attributes:
        delivered: queries with a usable reply (negatives, or a table of similar relations); the step draws for all
            others itself.
        late: the reply was late.
        old: the reply was computed from weights older than allowed.
        broken: the reply did not fit the request.
        refused: no request was sent, because too many were pending or no actor was available.
        failed: the source raised.
        lost: the actor died before its reply.
        ages: age in steps of the weights of each usable reply.
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
