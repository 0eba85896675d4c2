"""What became of the negatives that others were to draw."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Deliveries:
    """What became of the negatives asked for, in queries.

    Attributes:
        delivered: had theirs from others; the rest was drawn in the step alone.
        late: not there in time.
        old: drawn from vectors older than allowed.
        broken: not what was asked for.
        refused: never asked, as too many requests were under way, or no actor was there to be asked.
        failed: the source raised.
        lost: owed by an actor that died.
        ages: steps from the vectors that were looked at to the step, one for each delivery used.
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
