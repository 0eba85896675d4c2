"""Ranks that are threads of this process: collectives without a process group."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distkg.sharding.ranks import Ranks, Work


class Meeting:
    """Place where threads show each other their values, and wait until all have seen them."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size)
        self._shown: list[Any] = [None] * size

    def values(self, rank: int, value: Any) -> list[Any]:
        self._shown[rank] = value
        self._barrier.wait(30)
        shown = list(self._shown)
        self._barrier.wait(30)
        return shown

    def leave(self) -> None:
        self._barrier.abort()


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """The collectives of `Ranks` that batches use."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.cat(self.meeting.values(self.rank, tensor.clone()))

    def all_reduce(self, tensor: Tensor, op: str = "sum", *, wait: bool = True) -> Work:
        values = torch.stack(self.meeting.values(self.rank, tensor.clone()))
        tensor.copy_({"sum": values.sum(0), "max": values.amax(0), "min": values.amin(0)}[op])
        return Work()

    def all_to_all(self, out: Tensor, inp: Tensor, out_splits: list[int], in_splits: list[int]) -> None:
        everyone = self.meeting.values(self.rank, inp.clone().split(in_splits))
        parts = [sent[self.rank] for sent in everyone]
        assert [len(part) for part in parts] == out_splits
        out.copy_(torch.cat(parts))


def on_threads(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Return ``function(ranks, *args)`` of ``size`` threads, in rank order."""
    meeting = Meeting(size)

    def on_rank(rank: int) -> Any:
        try:
            return function(ThreadRanks(rank, size, meeting=meeting), *args)
        except BaseException:
            meeting.leave()
            raise

    with ThreadPoolExecutor(size) as threads:
        calls = [threads.submit(on_rank, rank) for rank in range(size)]
    failures = [failure for call in calls if (failure := call.exception()) is not None]
    if failures:  # a broken barrier says only that another thread has failed
        raise min(failures, key=lambda failure: isinstance(failure, threading.BrokenBarrierError))
    return [call.result() for call in calls]
