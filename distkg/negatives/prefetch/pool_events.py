"""Events of a negative pool: failed sources, broken replies, lost and hung actors."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from distkg.printable import printable

EventKind = Literal["failed", "broken", "lost", "hung"]
Missing = Literal["failed", "broken", "lost"]
"""Reason why a pool has no reply to a request: the source raised, the source returned something other than was
requested, or the actor died."""

MISTAKES: tuple[EventKind, ...] = ("failed", "broken")
LONGEST = 600  # characters of an error message


class NegativePoolError(ValueError):
    """Error of a hosted source in the actors of a pool; the message names the source, the actor and the cause."""


class BrokenDrawError(ValueError):
    """Error of a source that returned something other than the requested negatives; the message says what."""


@dataclass(frozen=True)
class PoolEvent:
    """Event of a hosted source or of an actor.

    Attributes:
        kind: ``failed``: a source raised, or an actor cannot be started; ``broken``: a source returned something other
            than was requested; ``lost``: an actor died and is being replaced; ``hung``: an actor was killed because it
            did not answer.
        text: description of the event with its place and cause, on one line.
        trace: traceback of the error, for the log; empty if there is none.
    """

    kind: EventKind
    text: str
    trace: str = field(default="", compare=False)

    @classmethod
    def of_error(cls, error: BaseException, action: str) -> PoolEvent:
        """Create the event of an exception raised during ``action``, such as "source cached drawing for step 3"."""
        if isinstance(error, BrokenDrawError):
            return cls("broken", f"{action}: {error}")
        return cls("failed", f"{action}: {describe_error(error)}", "".join(traceback.format_exception(error)))

    def at(self, place: str) -> PoolEvent:
        """Return a copy whose text begins with ``place``."""
        return replace(self, text=f"{place}: {self.text}")


def describe_error(error: BaseException) -> str:
    """Format the type, message and innermost line of code of an exception on one line.

    >>> describe_error(RuntimeError("no\\nluck"))
    'RuntimeError: no luck'
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {one_line(str(error))}{where}"


def one_line(text: str) -> str:
    """Return printable text of bounded length without line breaks."""
    words = " ".join(text.split())
    return printable(words if len(words) <= LONGEST else words[:LONGEST] + " …")


class PoolEventLog:
    """Log of events: with ``on_error: fail`` errors of sources are raised, all others become one warning per kind."""

    def __init__(self, on_error: Literal["fail", "fallback"]) -> None:
        self._on_error = on_error
        self._said: set[EventKind] = set()
        self._warnings: list[PoolEvent] = []

    def heed(self, events: Sequence[PoolEvent]) -> None:
        """Log events.

        Raises:
            NegativePoolError: a source failed, and ``negatives.pool.on_error`` is ``fail``.
        """
        for event in events:
            if event.kind in MISTAKES and self._on_error == "fail":
                error = NegativePoolError(
                    f"{event.text}. To continue with negatives drawn by negatives.pool.fallback in the step, set "
                    "negatives.pool.on_error: fallback"
                )
                if event.trace:
                    error.add_note(event.trace)
                raise error
            self.warn(event)

    def warn(self, event: PoolEvent) -> None:
        """Keep a warning of the event, unless one of its kind was kept before."""
        if event.kind not in self._said:
            self._said.add(event.kind)
            self._warnings.append(event)

    def take_warnings(self) -> list[PoolEvent]:
        """Return and clear the warnings since the last call."""
        warnings, self._warnings = self._warnings, []
        return warnings

    def mark_said(self, kinds: Sequence[EventKind]) -> None:
        """Drop warnings of kinds that other ranks have reported, now and in future."""
        self._said |= set(kinds)
        self._warnings = [event for event in self._warnings if event.kind not in kinds]
