"""Optional services that the cluster provides to a rank: a pool of negative sources, shared graphs, stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from distkg.negatives.prefetch.pool_client import PoolOf
from distkg.training.stopping import StopRequest


def _nobody_else_writes() -> None:
    """Of a rank without a launch: whoever calls it sees to that."""


@dataclass(frozen=True)
class Services:
    """Ways of a rank to what the cluster around it does for it; where there is none it does that itself.

    Attributes:
        pool_of: to the actors that host negative sources, where ``negatives.pool`` asks for them.
        graph_of: to graphs that the processes of a node share.
        check_writer: raises where another driver has taken over the run folder; asked before each write into it.
        stop: says when the run is to stop.
    """

    pool_of: PoolOf | None = None
    graph_of: Callable[[str], Any] | None = None
    check_writer: Callable[[], None] = _nobody_else_writes
    stop: StopRequest = field(default_factory=StopRequest)


LOCAL_SERVICES = Services()
