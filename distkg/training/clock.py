"""Timer of the phases of training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PHASES = ("data", "exchange", "compute", "optimizer")


class Clock:
    """Timer that sums seconds by phase; ``lap`` returns the seconds since the last lap."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - start

    def lap(self) -> dict[str, float]:
        """Return the seconds by phase, and reset them to zero."""
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds
