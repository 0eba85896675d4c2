"""What others do for a rank."""

from __future__ import annotations

from dataclasses import dataclass

from distkg.negatives.ahead import PoolOf
from distkg.negatives.mined import MinerOf
from distkg.training.graphs import GraphOf


@dataclass(frozen=True)
class Services:
    """Ways of a rank to what the cluster around it does for it; where there is none it does that itself.

    Attributes:
        pool_of: to those who draw negatives ahead of time, where ``negatives.pool`` asks for them.
        miner_of: to those who compare relations for kmas, likewise.
        graph_of: to graphs that the processes of a node share.
    """

    pool_of: PoolOf | None = None
    miner_of: MinerOf | None = None
    graph_of: GraphOf | None = None


ALONE = Services()
