"""Resources of a worker, as far as they can be told before a run starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distkg.planning.cluster import StatedGraph
from distkg.planning.machine import Machine


@dataclass(frozen=True)
class Resources:
    """Bytes and rates that a plan may count on.

    Attributes:
        memory: bytes per worker; None for no limit, as on a cluster whose machines are not known.
        disk: bytes that each worker may write in ``train.table_folder``; None for no limit, or no such files.
        gpu_memory: bytes of GPU memory per worker; None for no limit, and for a run on CPUs.
        workers_of_node: workers that share what lies on a node once.
        slowdown: how many times slower a worker is than this process alone.
        measure: rates of one worker, measured when called; None where time is not to be estimated.
        here: rates of this process's CPU, measured when called, if ``measure`` gives other ones; else None.
        elsewhere: the plan is for another cluster than the one that the run would use now.
        graph: counts to plan for; None for those of the store.
    """

    memory: int | None
    gpu_memory: int | None = None
    disk: int | None = None
    workers_of_node: int = 1
    slowdown: float = 1.0
    measure: Callable[[], Machine] | None = None
    here: Callable[[], Machine] | None = None
    elsewhere: bool = False
    graph: StatedGraph | None = None
