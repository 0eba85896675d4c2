"""Performance of this machine, measured in half a second, and the memory that processes may use."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from distkg import host_memory
from distkg.kernels.products import product

CGROUP_LIMITS = host_memory.CGROUP_LIMITS
_SIDE = 512
_COPIED_FLOATS = 16 << 20


@dataclass(frozen=True)
class Machine:
    """Measured rates of one worker.

    Attributes:
        flops: float32 matrix multiplication, operations per second (a multiply and an add are two).
        bandwidth: bytes per second read and written by a copy that exceeds the caches.
        nodes: number of nodes that workers are spread over.
        network: bytes per second that a worker may send to other nodes, and receive from them at the same time; None on
            one node.
    """

    flops: float
    bandwidth: float
    nodes: int = 1
    network: float | None = None

    def shared_by(self, processes: float) -> Machine:
        """Return the rates of one of ``processes`` that compete for the machine."""
        share = max(processes, 1.0)
        return replace(self, flops=self.flops / share, bandwidth=self.bandwidth / share)

    def on_nodes(self, nodes: int, network: float) -> Machine:
        """Return such a worker on one of several nodes."""
        return replace(self, nodes=nodes, network=network)


def measure(device: str = "cpu", seconds: float = 0.15) -> Machine:
    """Time matrix products and copies on ``device`` for about ``seconds`` each, with torch's current threads."""
    square = torch.ones(_SIDE, _SIDE, device=device)
    source = torch.zeros(_COPIED_FLOATS, device=device)
    target = torch.zeros_like(source)
    of_product = best_seconds(lambda: product(square, square), seconds, device)
    of_copy = best_seconds(lambda: target.copy_(source), seconds, device)
    return Machine(flops=2.0 * _SIDE**3 / of_product, bandwidth=8.0 * _COPIED_FLOATS / of_copy)


def memory_limit() -> int:
    """Return the memory limit of processes in bytes, as ``distkg.host_memory.memory_limit``."""
    return host_memory.memory_limit(CGROUP_LIMITS)


def best_seconds(action: Callable[[], object], seconds: float, device: str = "cpu") -> float:
    """Return the shortest time of ``action``, of as many as fit into ``seconds``: other load lengthens some of them."""
    action()
    _finish(device)
    start = before = time.perf_counter()
    best = math.inf
    while before - start < seconds:
        action()
        _finish(device)
        now = time.perf_counter()
        best, before = min(best, now - before), now
    return best


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
