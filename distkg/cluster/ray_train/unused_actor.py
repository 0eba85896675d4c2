"""Actor in place of one that Ray Train starts for reports, which no run makes.

Stands alone, so that its process does not import Ray Train, on the cores on which the workers start.
"""

from __future__ import annotations


class UnusedActor:
    """Actor that takes any settings and does nothing."""

    def __init__(self, **settings: object) -> None:
        pass
