"""Events of a negative pool that a run must not pass over: failed sources, broken replies, lost and hung actors."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from distkg.printable import printable

EventKind = Literal["failed", "broken", "lost", "hung"]
Missing = Literal["failed", "broken", "lost"]
"""Why a pool has no reply to a request: its source raised, its source returned something else than what was requested,
or the actor that owed it died."""

MISTAKES: tuple[EventKind, ...] = ("failed", "broken")
LONGEST = 600  # characters of an error message


class NegativePoolError(ValueError):
    """A hosted source failed in the actors of a pool; the message names source, actor and cause."""


class BrokenDrawError(ValueError):
    """A source returned something else than the negatives that were requested; the message says how they differ."""


@dataclass(frozen=True)
class PoolEvent:
    """Something that happened to a source or to an actor.

    Attributes:
        kind: ``failed``: a source raised, or an actor cannot be started; ``broken``: a source returned something else
            than what was requested; ``lost``: an actor died and is being replaced; ``hung``: it was killed because it
            did not answer.
        text: what happened, where and why, on one line.
        trace: traceback of the error, for the log; empty where there is none.
    """

    kind: EventKind
    text: str
    trace: str = field(default="", compare=False)

    @classmethod
    def of_error(cls, error: BaseException, action: str) -> PoolEvent:
        """The event that an exception is, raised during ``action`` (such as "source cached drawing for step 3")."""
        if isinstance(error, BrokenDrawError):
            return cls("broken", f"{action}: {error}")
        return cls("failed", f"{action}: {describe_error(error)}", "".join(traceback.format_exception(error)))

    def at(self, place: str) -> PoolEvent:
        """The same event with the place where it happened in front of its text."""
        return replace(self, text=f"{place}: {self.text}")


def describe_error(error: BaseException) -> str:
    """Type, message and innermost line of code of an exception, on one line.

    >>> describe_error(RuntimeError("no\\nluck"))
    'RuntimeError: no luck'
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {one_line(str(error))}{where}"


def one_line(text: str) -> str:
    """Printable text of bounded length without line breaks."""
    words = " ".join(text.split())
    return printable(words if len(words) <= LONGEST else words[:LONGEST] + " …")


class PoolEventLog:
    """Ends the run on mistakes, or remembers a warning: one of each kind, for counts tell the rest."""

    def __init__(self, on_error: Literal["fail", "fallback"]) -> None:
        self._on_error = on_error
        self._said: set[EventKind] = set()
        self._warnings: list[PoolEvent] = []

    def heed(self, events: Sequence[PoolEvent]) -> None:
        """Take note of events.

        Raises:
            NegativePoolError: a source failed, and ``negatives.pool.on_error`` is ``fail``.
        """
        for event in events:
            if event.kind in MISTAKES and self._on_error == "fail":
                error = NegativePoolError(
                    f"{event.text}. To train on with negatives that negatives.pool.fallback draws in the step, set "
                    "negatives.pool.on_error: fallback"
                )
                if event.trace:
                    error.add_note(event.trace)
                raise error
            self.warn(event)

    def warn(self, event: PoolEvent) -> None:
        """Remember an event that never ends the run."""
        if event.kind not in self._said:
            self._said.add(event.kind)
            self._warnings.append(event)

    def take_warnings(self) -> list[PoolEvent]:
        """Warnings since the last call."""
        taken, self._warnings = self._warnings, []
        return taken

    def mark_said(self, kinds: Sequence[EventKind]) -> None:
        """Other ranks have warned of these kinds."""
        self._said |= set(kinds)
        self._warnings = [event for event in self._warnings if event.kind not in kinds]
