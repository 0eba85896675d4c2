"""The ranks of a run and the collectives they use; with one rank every collective is the identity.

Knows torch.distributed, not Ray: a process group may come from Ray Train, from torchrun or from a test.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


class Work:
    """A collective under way; ``wait()`` blocks until its output may be read."""

    def __init__(self, handle: dist.Work | None = None) -> None:
        self._handle = handle

    def wait(self) -> None:
        if self._handle is not None:
            self._handle.wait()


@dataclass
class Traffic:
    """Bytes that this rank sent and received; for reductions, what a ring algorithm moves (2 (W - 1) / W each way)."""

    bytes: int = 0

    def add(self, tensor: Tensor, times: float) -> None:
        """Count ``times`` the size of a tensor."""
        self.bytes += round(tensor.nbytes * times)


@dataclass(frozen=True)
class Ranks:
    """This process's place among the workers.

    Attributes:
        rank: 0 … size-1.
        size: number of workers.
        device: where this rank's tensors live.
        group: process group of the collectives; None with one rank or for the default group.
        traffic: what the collectives have moved so far.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    @classmethod
    def single(cls, device: str = "cpu") -> Ranks:
        """One process, no process group."""
        return cls(device=torch.device(device))

    @classmethod
    def from_process_group(cls, device: torch.device) -> Ranks:
        """The ranks of torch.distributed's default group, or one rank where it is not initialised."""
        if not dist.is_initialized():
            return cls(device=device)
        return cls(rank=dist.get_rank(), size=dist.get_world_size(), device=device)

    @property
    def first(self) -> bool:
        """True on the rank that writes files and prints."""
        return self.rank == 0

    def all_to_all(
        self, out: Tensor, inp: Tensor, out_splits: list[int], in_splits: list[int], *, wait: bool = True
    ) -> Work:
        """Send ``in_splits[w]`` leading rows of ``inp`` to rank w, in order; receive likewise into ``out``."""
        if self.size == 1:
            out.copy_(inp)
            return Work()
        own = slice(0, in_splits[self.rank])  # as many rows as stay here, whichever they are
        self.traffic.bytes += inp.nbytes + out.nbytes - 2 * inp[own].nbytes
        handle = dist.all_to_all_single(out, inp, out_splits, in_splits, group=self.group, async_op=True)
        work = Work(handle)
        if wait:
            work.wait()
        return work

    def all_reduce(self, tensor: Tensor, op: str = "sum", *, wait: bool = True) -> Work:
        """Reduce in place over ranks; ``op`` is sum, max or min."""
        if self.size == 1:
            return Work()
        self.traffic.add(tensor, 4 * (self.size - 1) / self.size)
        operation = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}[op]
        work = Work(dist.all_reduce(tensor, operation, group=self.group, async_op=True))
        if wait:
            work.wait()
        return work

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Concatenate equally shaped tensors of all ranks along dimension 0."""
        if self.size == 1:
            return tensor
        out = tensor.new_empty((self.size * tensor.shape[0], *tensor.shape[1:]))
        self.traffic.add(tensor, 2 * (self.size - 1))
        dist.all_gather_single(out, tensor.contiguous(), group=self.group)
        return out

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        """Sum over ranks; rank w keeps the w-th of ``size`` equal parts along dimension 0."""
        if self.size == 1:
            return tensor
        out = tensor.new_empty((tensor.shape[0] // self.size, *tensor.shape[1:]))
        self.traffic.add(out, 2 * (self.size - 1))
        dist.reduce_scatter_single(out, tensor.contiguous(), group=self.group)
        return out

    def broadcast(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Overwrite ``tensor`` on every rank with that of ``source``."""
        if self.size > 1:
            dist.broadcast(tensor, source, group=self.group)
        return tensor

    def broadcast_object(self, value: object, source: int = 0) -> object:
        """A small Python value of ``source`` on every rank (sent by peers of this run only)."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, source, group=self.group)
        return box[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.group)
