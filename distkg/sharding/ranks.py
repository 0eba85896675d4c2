"""Ranks of a run and their collectives; with one rank every collective is the identity.

Depends on torch.distributed only, not on Ray: the process group may come from Ray Train, from torchrun or from a test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from distkg.sharding.mapped_memory import row_bytes
from distkg.sharding.shared_memory_collectives import NodeMemory

Reduction = Callable[..., Tensor]

_REDUCTIONS: dict[str, tuple[dist.ReduceOp.RedOpType, Reduction]] = {
    "sum": (dist.ReduceOp.SUM, torch.add),
    "max": (dist.ReduceOp.MAX, torch.maximum),
    "min": (dist.ReduceOp.MIN, torch.minimum),
}
_ALL_READ_ALL = 4
"""Largest number of ranks that reduce by reading all other ranks' memory; with more, gloo's ring moves fewer bytes."""


class Work:
    """Handle of an asynchronous collective; ``wait()`` blocks until its output may be read."""

    def __init__(self, finish: Callable[[], object] | None = None) -> None:
        self._finish = finish

    def wait(self) -> None:
        if self._finish is not None:
            self._finish()
            self._finish = None


Fill = Callable[[int, Tensor], object]
"""Function ``fill(rank, rows)`` that writes the data for a rank into rows."""


class Exchange(Protocol):
    """Handle of an asynchronous all-to-all exchange of rows."""

    def wait(self) -> Sequence[Tensor]:
        """Wait for and return the rows from each rank; read-only, and valid until :meth:`end`."""

    def end(self) -> None:
        """Release the memory of the received rows."""


@dataclass
class OverSockets:
    """Exchange through torch.distributed."""

    work: dist.Work
    sent: Tensor  # kept alive until it is sent
    received: Sequence[Tensor]

    def wait(self) -> Sequence[Tensor]:
        self.work.wait()
        return self.received

    def end(self) -> None:
        pass


@dataclass
class Traffic:
    """Amount of data that this rank exchanged with other ranks.

    Attributes:
        bytes: bytes sent and received; for reductions, those of a ring algorithm (2 (W - 1) / W each way).
        rows: rows of sharded tables received from their owners.
    """

    bytes: int = 0
    rows: int = 0

    def add(self, tensor: Tensor, times: float) -> None:
        """Add ``times`` the size of a tensor."""
        self.bytes += round(tensor.nbytes * times)


@dataclass(frozen=True)
class Ranks:
    """Rank of this process among the workers, and the collectives.

    A collective takes tensors of ``device``, or of the host, which go through another backend of the group (gloo beside
    NCCL): what the host counts and decides is a tensor of the host, so that no device is waited for.

    Attributes:
        rank: 0 … size - 1.
        size: number of workers.
        device: device of this rank's tensors.
        group: process group of the collectives; None with one rank or for the default group.
        traffic: data exchanged so far.
        node: shared memory of all ranks, if they are on one machine and compute on CPU; else None.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None
    traffic: Traffic = field(default_factory=Traffic, compare=False)
    node: NodeMemory | None = field(default=None, compare=False)

    @classmethod
    def single(cls, device: str = "cpu") -> Ranks:
        """Ranks of a single process, without a process group."""
        return cls(device=torch.device(device))

    @classmethod
    def from_process_group(cls, device: torch.device, *, share_memory: bool = True) -> Ranks:
        """Ranks of torch.distributed's default group, or one rank if it is not initialised; collective.

        On GPUs the group needs a backend for host tensors too, as ``cpu:gloo,cuda:nccl`` has.
        With ``share_memory``, ranks that all compute on the CPU of one machine exchange tensors through shared memory.
        """
        if not dist.is_initialized():
            return cls(device=device)
        rank, size = dist.get_rank(), dist.get_world_size()
        node = NodeMemory.open() if share_memory and size > 1 and device.type == "cpu" else None
        return cls(rank, size, device, node=node)

    @property
    def first(self) -> bool:
        """True on the rank that writes files and prints."""
        return self.rank == 0

    def exchange(self, fill: Fill, send: Sequence[int], receive: Sequence[int], like: Tensor) -> Exchange:
        """Start to send ``send[w]`` rows to every other rank w, and to receive ``receive[w]`` from it; collective.

        ``fill(w, rows)`` writes the data for rank w into the given rows, which have the dtype and row shape of
        ``like``. The counts of this rank itself are ignored: the caller handles its own rows.
        """
        send = [0 if rank == self.rank else count for rank, count in enumerate(send)]
        receive = [0 if rank == self.rank else count for rank, count in enumerate(receive)]
        self.traffic.bytes += (sum(send) + sum(receive)) * row_bytes(like)
        if self.node is not None:
            return self.node.exchange(fill, send, receive, like)
        out, inp = (like.new_empty(sum(counts), *like.shape[1:]) for counts in (receive, send))
        for rank, rows in enumerate(inp.split(send)):
            if len(rows):
                fill(rank, rows)
        work = dist.all_to_all_single(out, inp, receive, send, group=self.group, async_op=True)
        return OverSockets(work, inp, out.split(receive))

    def all_to_all(self, out: Tensor, inp: Tensor, out_splits: list[int], in_splits: list[int]) -> None:
        """Send ``in_splits[w]`` leading rows of ``inp`` to rank w, in order; receive likewise into ``out``."""
        received, sent = out.split(out_splits), inp.split(in_splits)
        received[self.rank].copy_(sent[self.rank])
        if self.size == 1:
            return
        exchange = self.exchange(lambda rank, rows: rows.copy_(sent[rank]), in_splits, out_splits, inp)
        for rank, rows in enumerate(exchange.wait()):
            if rank != self.rank:
                received[rank].copy_(rows)
        exchange.end()

    def all_reduce(self, tensor: Tensor, op: str = "sum", *, wait: bool = True) -> Work:
        """Reduce in place over ranks; ``op`` is sum, max or min."""
        if self.size == 1:
            return Work()
        self.traffic.add(tensor, 4 * (self.size - 1) / self.size)
        collective, reduce = _REDUCTIONS[op]
        if self.node is None or self.size > _ALL_READ_ALL:
            work = Work(dist.all_reduce(tensor, collective, group=self.group, async_op=True).wait)
        else:
            work = self._all_reduce_in_memory(self.node, tensor, reduce)
        if wait:
            work.wait()
        return work

    def sum_array(self, array: np.ndarray) -> None:
        """Sum a NumPy array in place over ranks."""
        if self.size > 1:
            tensor = torch.from_numpy(array)
            self.all_reduce(tensor)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Concatenate equally shaped tensors of all ranks along dimension 0."""
        if self.size == 1:
            return tensor
        out = tensor.new_empty((self.size * tensor.shape[0], *tensor.shape[1:]))
        self.traffic.add(tensor, 2 * (self.size - 1))
        if self.node is None:
            dist.all_gather_single(out, tensor.contiguous(), group=self.group)
            return out
        message = self.node.post(tensor)
        for place, part in zip(out.split(len(tensor)), message.wait(), strict=True):
            place.copy_(part)
        message.end()
        return out

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        """Sum over ranks; rank w keeps the w-th of ``size`` equal parts along dimension 0."""
        if self.size == 1:
            return tensor
        out = tensor.new_empty((tensor.shape[0] // self.size, *tensor.shape[1:]))
        self.traffic.add(out, 2 * (self.size - 1))
        if self.node is None:
            dist.reduce_scatter_single(out, tensor.contiguous(), group=self.group)
            return out
        message = self.node.post(tensor)
        low = self.rank * len(out)
        _reduce([part[low : low + len(out)] for part in message.wait()], torch.add, out)
        message.end()
        return out

    def broadcast(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Overwrite ``tensor`` on every rank with that of ``source``."""
        if self.size > 1:
            dist.broadcast(tensor, source, group=self.group)
        return tensor

    def broadcast_object(self, value: object, source: int = 0) -> object:
        """Return a small Python value of rank ``source`` on every rank (pickled, among workers of this run only)."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, source, group=self.group)
        return box[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.group)

    def _all_reduce_in_memory(self, node: NodeMemory, tensor: Tensor, reduce: Reduction) -> Work:
        rows = torch.atleast_1d(tensor)
        message = node.post(rows)

        def finish() -> None:
            _reduce(message.wait(), reduce, rows)
            message.end()

        return Work(finish)


def _reduce(parts: Sequence[Tensor], reduce: Reduction, out: Tensor) -> None:
    """Reduce in the order of ranks, so that every rank gets the same bits."""
    reduce(parts[0], parts[1], out=out)
    for part in parts[2:]:
        reduce(out, part, out=out)
