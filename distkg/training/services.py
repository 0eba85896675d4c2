"""Optional services that the cluster provides to a rank: a pool of negative sources, shared graphs, stops, metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from distkg.config import RunConfig
from distkg.negatives.prefetch.pool_client import PoolOf
from distkg.sharding.ranks import Ranks
from distkg.training.observer import NoObserver, Observer
from distkg.training.run_dir import Record
from distkg.training.stopping import StopRequest


def _nobody_else_writes() -> None:
    """Do nothing: a rank without a launch has no lease on the run folder to check."""


@dataclass(frozen=True)
class Services:
    """Optional services that the cluster provides to a rank; without a service, the rank does the work itself.

    Attributes:
        pool_of: key of a hosted negative source → its pool of actors; None without ``negatives.pool.actors``.
        graph_of: address → the graph that the processes of a node share; None without shared graphs.
        check_writer: function that raises if another driver has taken over the run folder; called before each write.
        stop: request to stop the run.
        observer: receives the reports of this rank.
    """

    pool_of: PoolOf | None = None
    graph_of: Callable[[str], Any] | None = None
    check_writer: Callable[[], None] = _nobody_else_writes
    stop: StopRequest = field(default_factory=StopRequest)
    observer: Observer = field(default_factory=NoObserver)


LOCAL_SERVICES = Services()


class TrainOnRank(Protocol):
    """Function that runs a training on one rank; the result is that of rank 0."""

    def __call__(
        self,
        config: RunConfig,
        run: Path,
        ranks: Ranks,
        *,
        resume: bool,
        listener: Any,
        services: Services,
    ) -> Record: ...
