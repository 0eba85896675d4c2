"""Performance of this machine, measured in half a second, and the memory that processes may use."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

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
    """

    flops: float
    bandwidth: float

    def shared_by(self, processes: float) -> Machine:
        """Return the rates of one of ``processes`` that compete for the machine."""
        share = max(processes, 1.0)
        return Machine(self.flops / share, self.bandwidth / share)


def measure(device: str = "cpu", seconds: float = 0.25) -> Machine:
    """Time matrix products and copies on ``device`` for about ``seconds`` each, with torch's current threads."""
    square = torch.ones(_SIDE, _SIDE, device=device)
    source = torch.zeros(_COPIED_FLOATS, device=device)
    target = torch.zeros_like(source)
    products = _rate(lambda: product(square, square), seconds, device)
    copies = _rate(lambda: target.copy_(source), seconds, device)
    return Machine(flops=2.0 * _SIDE**3 * products, bandwidth=8.0 * _COPIED_FLOATS * copies)


def memory_limit() -> int:
    """Return the memory limit of processes in bytes, as ``distkg.host_memory.memory_limit``."""
    return host_memory.memory_limit(CGROUP_LIMITS)


def _rate(action: Callable[[], object], seconds: float, device: str) -> float:
    action()
    _finish(device)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        action()
        _finish(device)
        count += 1
    return count / (time.perf_counter() - start)


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
