"""What others do for a rank."""

from __future__ import annotations

from dataclasses import dataclass

from distkg.negatives.ahead import PoolOf
from distkg.training.graphs import GraphOf


@dataclass(frozen=True)
class Services:
    """Ways of a rank to what the cluster around it does for it; where there is none it does that itself.

    Attributes:
        pool_of: to those who draw negatives ahead of time, where ``negatives.pool`` asks for them.
        graph_of: to graphs that the processes of a node share.
    """

    pool_of: PoolOf | None = None
    graph_of: GraphOf | None = None


ALONE = Services()
