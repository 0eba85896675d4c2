"""Memory that the ranks of one machine map together: tensors move between them without a socket.

Gloo copies every byte through the kernel's loopback network, which costs a third of a training step. Here a rank
writes what it says into memory that its peers read. Gloo still tells when: each collective sends every peer eight
bytes (where to read), so a lost peer is noticed as it would be without this memory.

The memory is anonymous (``memfd_create``): ``/dev/shm``, which holds 64 MB in many containers, does not bound it,
and it is gone with the last process that maps it, however that ends.
"""

from __future__ import annotations

import mmap
import os
import secrets
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

_PAGE = 4096
_TOKEN_BYTES = 32


class NodeMemory:
    """What this rank says to the others of its machine, and what they say to it."""

    def __init__(self, rank: int, memories: list[_Memory], group: dist.ProcessGroup | None) -> None:
        """``memories`` in rank order; :meth:`open` makes them."""
        self._rank, self._memories, self._group = rank, memories, group
        self._regions: list[_Region] = []
        self._end = _PAGE  # the first page holds the token
        self._begun = 0
        self._latest_done = -1

    @classmethod
    def open(cls, group: dist.ProcessGroup | None = None) -> NodeMemory | None:
        """Memory shared by all ranks of a group, or None where one of them cannot see another's; collective."""
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        own, token = _Memory.new() if hasattr(os, "memfd_create") else None, secrets.token_bytes(_TOKEN_BYTES)
        if own is not None:
            own.write_token(token)
        offers: list[tuple[int, int, bytes] | None] = [None] * size
        offer = None if own is None else (os.getpid(), own.descriptor, token)
        dist.all_gather_object(offers, offer, group=group)
        memories = [own if peer == rank else _Memory.of_peer(offers[peer]) for peer in range(size)]
        seen = torch.tensor([int(all(memory is not None for memory in memories))])
        dist.all_reduce(seen, dist.ReduceOp.MIN, group=group)
        found = [memory for memory in memories if memory is not None]
        if not seen.item():
            return None
        return cls(rank, found, group)

    def say(self, tensor: Tensor) -> Said:
        """Begin to offer a tensor to every peer; collective."""
        region = self._free_region(tensor.nbytes)
        self._memories[self._rank].view(region.offset, tensor).copy_(tensor)
        return self._begin(region, [region.offset] * len(self._memories))

    def say_each(self, parts: Sequence[Tensor]) -> Said:
        """Begin to offer peer w ``parts[w]``; what is for this rank itself is left out; collective."""
        others = [part if peer != self._rank else part[:0] for peer, part in enumerate(parts)]
        sizes = [part.nbytes for part in others]
        region = self._free_region(sum(sizes))
        offsets = [region.offset + before for before in accumulate(sizes, initial=0)][:-1]
        own = self._memories[self._rank]
        for offset, part in zip(offsets, others, strict=True):
            own.view(offset, part).copy_(part)
        return self._begin(region, offsets)

    def _begin(self, region: _Region, offsets: list[int]) -> Said:
        here, where = torch.tensor(offsets), torch.empty(len(offsets), dtype=torch.int64)
        work = dist.all_to_all_single(where, here, group=self._group, async_op=True)
        said = Said(self, region, self._begun, work, where, here)
        self._begun += 1
        return said

    def _free_region(self, size: int) -> _Region:
        free = [region for region in self._regions if region.size >= size and region.free_from <= self._latest_done]
        if free:
            region = min(free, key=lambda region: region.size)
        else:
            # Sizes differ from step to step by a few rows; an eighth of slack lets the next one fit.
            pages = -(-(size + size // 8) // _PAGE)
            region = _Region(self._end, max(pages, 1) * _PAGE)
            self._end += region.size
            self._memories[self._rank].grow(self._end)
            self._regions.append(region)
        region.free_from = _NEVER
        return region

    def _done(self, said: Said) -> None:
        # Every peer has begun this collective, hence has done before it all that this rank did before it began.
        self._latest_done = max(self._latest_done, said.number)

    def _read(self, said: Said) -> None:
        # Once a later collective is done here, every peer has read as well: ranks run the same program.
        said.region.free_from = self._begun


_NEVER = 1 << 62


@dataclass
class _Region:
    """A part of this rank's memory; free once collective number ``free_from`` or a later one is done."""

    offset: int
    size: int
    free_from: int = 0


@dataclass
class Said:
    """A collective under way.

    Attributes:
        memory: where it takes place.
        region: what this rank wrote.
        number: of the collective, in the order of the program.
        work: the exchange of offsets.
        where: int64 [W], byte offset of what each peer says to this rank.
        offsets: kept alive until they are sent.
    """

    memory: NodeMemory
    region: _Region
    number: int
    work: dist.Work
    where: Tensor
    offsets: Tensor
    _places: list[int] = field(default_factory=list)

    def arrive(self) -> None:
        """Block until every peer has spoken."""
        self.work.wait()
        self._places = self.where.tolist()
        self.memory._done(self)

    def part(self, peer: int, like: Tensor, first: int = 0) -> Tensor:
        """What a peer said, from its ``first`` byte on, with the shape and dtype of ``like``."""
        return self.memory._memories[peer].view(self._places[peer] + first, like)

    def forget(self) -> None:
        """What peers said is not looked at any more, and may be overwritten."""
        self.memory._read(self)


class _Memory:
    """An anonymous file that can grow, mapped."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._bytes = torch.empty(0, dtype=torch.uint8)
        weakref.finalize(self, os.close, descriptor)  # maps and peers keep the memory that they still use

    @classmethod
    def new(cls) -> _Memory:
        memory = cls(os.memfd_create("distkg"))
        memory.grow(_PAGE)
        return memory

    @classmethod
    def of_peer(cls, offer: tuple[int, int, bytes] | None) -> _Memory | None:
        """The memory of a process (id, descriptor, token); None where this one does not see it."""
        if offer is None:
            return None
        process, descriptor, token = offer
        try:
            memory = cls(os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC))
        except OSError:
            return None
        # On another machine, or in another container, a process of that number may exist too.
        return memory if os.pread(memory.descriptor, _TOKEN_BYTES, 0) == token else None

    def write_token(self, token: bytes) -> None:
        os.pwrite(self.descriptor, token, 0)

    def view(self, offset: int, like: Tensor) -> Tensor:
        """The bytes from an offset on, with the shape and dtype of ``like``."""
        end = offset + like.nbytes
        if end > len(self._bytes):
            self._map()
        return self._bytes[offset:end].view(like.dtype).view(like.shape)

    def grow(self, size: int) -> None:
        """Reserve ``size`` bytes in all: too little memory is an error here, and not a signal at the first write."""
        os.posix_fallocate(self.descriptor, 0, size)
        self._map()

    def _map(self) -> None:
        # Earlier maps live as long as a tensor looks into them, and show the same bytes.
        mapped = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
        self._bytes = torch.frombuffer(mapped, dtype=torch.uint8)
