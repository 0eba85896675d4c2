"""Resources of a worker, as far as they can be told before a run starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distkg.planning.machine import Machine


@dataclass(frozen=True)
class Resources:
    """Bytes and rates that a plan may count on.

    Attributes:
        memory: bytes per worker; None for no limit, as on a cluster whose machines are not known.
        gpu_memory: bytes of GPU memory per worker; None for no limit, and for a run on CPUs.
        workers_of_node: workers that share what lies on a node once.
        slowdown: how many times slower a worker is than this process alone.
        measure: rates of one worker, measured when called; None where time is not to be estimated.
    """

    memory: int | None
    gpu_memory: int | None = None
    workers_of_node: int = 1
    slowdown: float = 1.0
    measure: Callable[[], Machine] | None = None
