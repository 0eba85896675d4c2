"""Timers of the phases of training."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Protocol, cast

import torch

PHASES = ("data", "exchange", "compute", "optimizer")


class Clock:
    """Timer that sums seconds by phase; ``lap`` returns the seconds since the last lap."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)

    @classmethod
    def of(cls, device: torch.device) -> Clock:
        """Return the clock of work on a device: one of the host for work on CPU."""
        return DeviceClock(_cuda_event) if device.type == "cuda" else cls()

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


class Event(Protocol):
    """Mark in the work that is queued for a device, as ``torch.cuda.Event``."""

    def record(self) -> None:
        """Queue the mark."""

    def query(self) -> bool:
        """Return whether the device has passed the mark."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has passed the mark."""

    def elapsed_time(self, end_event: Event) -> float:
        """Return the milliseconds from this mark to another."""
        ...


class DeviceClock(Clock):
    """Timer of phases whose work a device does later, between marks in its queue.

    A phase lasts from when the device has done what was queued before it until it has done what the phase has queued.
    A phase of the host alone thus counts as long as the device has nothing to do meanwhile. Only ``lap`` waits.
    """

    def __init__(self, new_event: Callable[[], Event]) -> None:
        super().__init__()
        self._new_event = new_event
        self._open: deque[tuple[str, Event, Event]] = deque()  # phases that the device may not have passed, in order
        self._free: list[Event] = []
        self._lock = Lock()  # batches may be made ahead in a thread of their own

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = self._mark()
        try:
            yield
        finally:
            self._open.append((phase, start, self._mark()))
            self._close()

    def lap(self) -> dict[str, float]:
        if self._open:
            self._open[-1][2].synchronize()
        self._close()
        return super().lap()

    def _mark(self) -> Event:
        with self._lock:
            event = self._free.pop() if self._free else self._new_event()
        event.record()
        return event

    def _close(self) -> None:
        """Add the phases that the device has passed."""
        with self._lock:
            while self._open and self._open[0][2].query():
                phase, start, end = self._open.popleft()
                self._seconds[phase] += start.elapsed_time(end) / 1e3
                self._free += start, end


def _cuda_event() -> Event:
    return cast(Event, torch.cuda.Event(enable_timing=True))
