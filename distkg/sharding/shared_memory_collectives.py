"""Collectives of ranks on one machine through shared memory, without sockets.

Gloo copies every byte through the kernel's loopback network, which costs a third of a training step. Here a rank writes
its data into its own memory and sends every peer the offset in a message of 16 bytes; peers read the data in place.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from distkg.sharding.mapped_memory import MappedMemory, Region, Regions, row_bytes
from distkg.sharding.pipe_signals import Inbox, Outbox

_TOKEN_BYTES = 32


@dataclass(frozen=True)
class Offer:
    """Address of a rank for its peers: process id, descriptors of its memory and of a pipe for every rank, and the
    first bytes of its memory."""

    process: int
    memory: int
    pipes: list[int]
    token: bytes

    def path(self, descriptor: int) -> str:
        return f"/proc/{self.process}/fd/{descriptor}"


class NodeMemory:
    """Shared memory and pipes of this rank and its peers on one machine."""

    def __init__(
        self, rank: int, memories: Sequence[MappedMemory], inboxes: dict[int, Inbox], outboxes: dict[int, Outbox]
    ) -> None:
        """``memories`` of all ranks, boxes by peer; use :meth:`open` to create these."""
        self._rank, self._memories, self._inboxes, self._outboxes = rank, memories, inboxes, outboxes
        self._regions = Regions(memories[rank])
        self._begun = 0
        self._latest_done = -1

    @classmethod
    def open(cls) -> NodeMemory | None:
        """Connect all ranks of the default group; None if any rank cannot reach another; collective."""
        rank, size = dist.get_rank(), dist.get_world_size()
        token = secrets.token_bytes(_TOKEN_BYTES)
        offer, own, inboxes = None, None, dict[int, Inbox]()
        with suppress(OSError):  # no such memory on this system, or no descriptors left
            own = MappedMemory.new(token)
            inboxes = {peer: Inbox(peer) for peer in range(size) if peer != rank}
            pipes = [inboxes[peer].writes if peer != rank else -1 for peer in range(size)]
            offer = Offer(os.getpid(), own.descriptor, pipes, token)
        offers: list[Offer | None] = [None] * size
        dist.all_gather_object(offers, offer)
        memories, outboxes = [], {}
        try:
            for peer, peer_offer in enumerate(offers):
                if own is None or peer_offer is None:
                    raise OSError("no anonymous memory")
                if peer == rank:
                    memories.append(own)
                    continue
                # On another machine or in another container the path does not exist, or is of another process.
                memories.append(MappedMemory.of_peer(peer_offer.path(peer_offer.memory), peer_offer.token))
                outboxes[peer] = Outbox(peer, peer_offer.path(peer_offer.pipes[rank]))
        except OSError:
            memories = []
        everyone = torch.tensor([len(memories)])
        dist.all_reduce(everyone, dist.ReduceOp.MIN)
        if int(everyone) < size:
            return None
        for inbox in inboxes.values():
            inbox.opened()
        return cls(rank, memories, inboxes, outboxes)

    def post(self, tensor: Tensor) -> PendingMessage:
        """Start to send a tensor to every rank, including this one; collective."""
        region = self._regions.take(tensor.nbytes, self._latest_done)
        self._own.view(region.offset, len(tensor), tensor).copy_(tensor)
        size = len(self._memories)
        return self._begin(region, [region.offset] * size, [len(tensor)] * size, tensor)

    def exchange(
        self, fill: Callable[[int, Tensor], object], send: Sequence[int], receive: Sequence[int], like: Tensor
    ) -> PendingMessage:
        """Start to send ``send[w]`` rows, written by ``fill(w, rows)``, to each rank w; collective."""
        sizes = [count * row_bytes(like) for count in send]
        region = self._regions.take(sum(sizes), self._latest_done)
        offsets = list(accumulate(sizes, initial=region.offset))[:-1]
        for rank, (offset, count) in enumerate(zip(offsets, send, strict=True)):
            if count:
                fill(rank, self._own.view(offset, count, like))
        return self._begin(region, offsets, receive, like)

    @property
    def _own(self) -> MappedMemory:
        return self._memories[self._rank]

    def _begin(self, region: Region, offsets: Sequence[int], counts: Sequence[int], like: Tensor) -> PendingMessage:
        for peer, outbox in self._outboxes.items():
            outbox.send(self._begun, offsets[peer])
        message = PendingMessage(self, region, self._begun, offsets[self._rank], counts, like[:0])
        self._begun += 1
        return message

    def _wait(self, said: PendingMessage) -> list[Tensor]:
        parts = []
        for rank, (memory, count) in enumerate(zip(self._memories, said.counts, strict=True)):
            offset = said.offset if rank == self._rank else self._inboxes[rank].receive(said.number)
            parts.append(memory.view(offset, count, said.like))
        # Every rank has begun this collective, so it has finished those that this rank finished before beginning it.
        self._latest_done = max(self._latest_done, said.number)
        return parts

    def _end(self, said: PendingMessage) -> None:
        # When a later collective is done here, every rank has read this one: all ranks have the same order.
        said.region.free_from = self._begun


@dataclass(frozen=True)
class PendingMessage:
    """Handle of an asynchronous collective.

    Attributes:
        memory: memory in which it takes place.
        region: region that this rank wrote.
        number: number of the collective, in program order.
        offset: offset of the rows from this rank to itself.
        counts: number of rows from each rank to this one.
        like: tensor with the dtype and row shape of the rows.
    """

    memory: NodeMemory
    region: Region
    number: int
    offset: int
    counts: Sequence[int]
    like: Tensor

    def wait(self) -> list[Tensor]:
        """Wait for and return the rows from each rank; read-only, and valid until :meth:`end`."""
        return self.memory._wait(self)

    def end(self) -> None:
        """Release the rows, which may be overwritten from then on."""
        self.memory._end(self)
