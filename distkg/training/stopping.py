"""A run that is asked to stop: what its ranks must know, and what they leave."""

from __future__ import annotations

from dataclasses import dataclass


class StopAsked(Exception):
    """Every rank leaves the training loop; a checkpoint of the step is on disk."""


@dataclass
class StopRequest:
    """Shared between the thread that trains and the one that hears of a stop; each field is written by one of them.

    Attributes:
        asked: the run is to stop: what is under way may be cut short, if all ranks do so.
        unsaved: there may be progress that no checkpoint holds.
    """

    asked: bool = False
    unsaved: bool = False

    def hurries(self) -> bool:
        """Whether what is being computed, such as a validation, will be thrown away.

        A rank that hurries leaves computation out and takes part in every exchange, for others may not have heard yet.
        """
        return self.asked
