"""Stop requests to a run, shared by the training thread and the thread that receives them."""

from __future__ import annotations

from dataclasses import dataclass

STOP_SECONDS = 60.0
"""Maximum time of a checkpoint when a run is stopped, unless its driver is killed earlier."""


class StopAsked(Exception):
    """Exception with which every rank leaves the training loop; a checkpoint of the step is on disk."""


@dataclass
class StopRequest:
    """State shared between the training thread and the thread that receives stop requests; each field has one writer.

    Attributes:
        requested: the run is to stop, so current work may be cut short if all ranks do so.
        unsaved: there may be progress that no checkpoint holds.
        leaving: beginning of a sentence about nodes that are taken away, if the run is to stop only to continue on
            other nodes; else empty.
    """

    requested: bool = False
    unsaved: bool = False
    leaving: str = ""

    def hurries(self) -> bool:
        """Return whether the result of the current computation, such as a validation, will be discarded.

        A rank that hurries skips computation but takes part in every collective, because other ranks may not have
        received the request yet.
        """
        return self.requested
