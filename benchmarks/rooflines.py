"""What this machine can do at most: matrix products, memory bandwidth, square roots; in one process and in two.

The other benchmarks call ``around`` in every repetition, so that each of their figures stands beside the
rooflines of the same minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from benchmarks.common import Figures, begin, finish
from benchmarks.processes import WORKERS, on_ranks
from distkg.kernels import cpu
from distkg.sharding.ranks import Ranks

SIDE = 1024
TRIAD_FLOATS = 16 << 20  # 64 MiB each for three arrays: beyond the caches
CACHED_FLOATS = 32 << 10
SECONDS = 0.3
QUICK_SECONDS = 0.02
QUICK_SIDE = 128  # without its instructions, a product of bfloat16 takes a hundred times as long
TRIAD_BYTES = 12  # per element: two reads and a write; the read that precedes a write is not counted


T = TypeVar("T")


class Rooflines(NamedTuple):
    """Rates per second.

    Attributes:
        torch_mm: float32 operations of torch.mm (MKL on CPU); a multiply and an add are two.
        onednn: float32 operations of oneDNN; 0 if torch has none.
        bfloat16: operations of torch.mm between bfloat16 matrices.
        bandwidth: bytes moved by the triad a = b + s·c.
        square_roots: float32 square roots of numbers in cache.
    """

    torch_mm: float
    onednn: float
    bfloat16: float
    bandwidth: float
    square_roots: float


def measure(ranks: Ranks, seconds: float = SECONDS) -> Rooflines:
    """Rates of this process while all ranks do the same; torch uses its current threads. Collective."""
    side = SIDE if seconds >= SECONDS else QUICK_SIDE
    products: list[Callable[[], Work]] = [partial(work, side) for work in (_torch_mm, _onednn, _bfloat16)]
    return Rooflines(*(_rate(ranks, work, seconds) for work in [*products, _triad, _square_roots]))


def around(ranks: Ranks, work: Callable[[], T], seconds: float = SECONDS) -> tuple[Rooflines, T]:
    """What ``work`` gives, and the mean of the rates right before and right after it; collective."""
    before = measure(ranks, seconds)
    done = work()
    after = measure(ranks, seconds)
    return Rooflines(*((first + last) / 2 for first, last in zip(before, after, strict=True))), done


def together(parts: Iterable[Rooflines]) -> Rooflines:
    """Rates of several processes at once."""
    return Rooflines(*map(sum, zip(*parts, strict=True)))


Work = tuple[Callable[[], object], float]


def _rate(ranks: Ranks, work: Callable[[], Work], seconds: float) -> float:
    action, amount = work()
    action()
    ranks.barrier()
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        action()
        count += 1
    return amount * count / elapsed


def _torch_mm(side: int) -> Work:
    left, right, out = (torch.rand(side, side) for _ in range(3))
    return lambda: torch.mm(left, right, out=out), 2.0 * side**3


def _onednn(side: int) -> Work:
    if not cpu.has_onednn():
        return lambda: None, 0.0
    left, right = (torch.rand(side, side) for _ in range(2))
    return lambda: cpu.linear(left, right), 2.0 * side**3


def _bfloat16(side: int) -> Work:
    left, right, out = (torch.rand(side, side).bfloat16() for _ in range(3))
    return lambda: torch.mm(left, right, out=out), 2.0 * side**3


def _triad() -> Work:
    first, second, out = (torch.ones(TRIAD_FLOATS) for _ in range(3))
    return lambda: torch.add(first, second, alpha=3.0, out=out), float(TRIAD_BYTES * TRIAD_FLOATS)


def _square_roots() -> Work:
    numbers = torch.rand(CACHED_FLOATS)
    out = torch.empty_like(numbers)
    return lambda: torch.sqrt(numbers, out=out), float(CACHED_FLOATS)


ROWS = {
    "torch_mm": "float32 products, torch.mm (Gflop/s)",
    "onednn": "float32 products, oneDNN (Gflop/s)",
    "bfloat16": "bfloat16 products, torch.mm (Gflop/s)",
    "bandwidth": "memory, triad (GB/s)",
    "square_roots": "square roots in cache (G/s)",
}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure one process, then as many at once as the other benchmarks use."""
    session = begin(__file__, str(__doc__), arguments)
    figures = Figures()
    seconds = QUICK_SECONDS if session.quick else SECONDS
    for _ in session.repetitions:
        for size in (1, WORKERS):
            total = together(finished.value for finished in on_ranks(size, measure, seconds))
            for name, rate in total._asdict().items():
                figures.add(ROWS[name], {"1 process" if size == 1 else f"{size} processes": rate / 1e9})
    return finish(session, {"side": SIDE, "triad_floats": TRIAD_FLOATS, "seconds": seconds}, figures)


if __name__ == "__main__":
    main()
