"""Shared memory of the processes of one machine, and its allocator.

The memory is anonymous (``memfd_create``): it is not bounded by ``/dev/shm``, which has 64 MB in many containers, and
it is freed with the last process that maps it, even after a crash.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

_PAGE = 4096


def row_bytes(like: Tensor) -> int:
    """Return the bytes of one row of a tensor, which may have no rows."""
    return math.prod(like.shape[1:]) * like.element_size()


class MappedMemory:
    """Mapped anonymous file that can grow.

    Attributes:
        descriptor: file descriptor in this process.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._bytes = torch.empty(0, dtype=torch.uint8)
        weakref.finalize(self, os.close, descriptor)  # maps and peers keep memory in use alive

    @classmethod
    def new(cls, begin: bytes) -> MappedMemory:
        """Create memory of this process; it starts with the bytes ``begin``, by which peers recognise it.

        Raises:
            OSError: the system has no such memory (only Linux has), or does not permit it.
        """
        if not all(hasattr(os, call) for call in ("memfd_create", "posix_fallocate")):
            raise OSError("this system has no anonymous memory with a descriptor")
        memory = cls(os.memfd_create("distkg"))
        memory.grow(_PAGE)  # sandboxes may refuse it; then sockets are used
        os.pwrite(memory.descriptor, begin, 0)
        return memory

    @classmethod
    def of_peer(cls, path: str, begin: bytes) -> MappedMemory:
        """Open the memory of another process by the path of its descriptor.

        Raises:
            OSError: no such memory, no permission, or it does not start with ``begin``.
        """
        memory = cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        if os.pread(memory.descriptor, len(begin), 0) != begin:
            raise OSError(f"{path} is not the memory that was offered")
        return memory

    def view(self, offset: int, count: int, like: Tensor) -> Tensor:
        """Return a view of ``count`` rows from a byte offset on, with the dtype and row shape of ``like``."""
        end = offset + count * row_bytes(like)
        if end > len(self._bytes):
            self._map()
        return self._bytes[offset:end].view(like.dtype).view(count, *like.shape[1:])

    def grow(self, size: int) -> None:
        """Reserve ``size`` bytes in total, so that lack of memory is an error here instead of a signal at a write."""
        os.posix_fallocate(self.descriptor, 0, size)

    def _map(self) -> None:
        # Earlier maps live as long as tensors refer to them, and show the same bytes.
        mapped = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
        self._bytes = torch.frombuffer(mapped, dtype=torch.uint8)


@dataclass
class Region:
    """Part of a memory, in bytes; free once collective number ``free_from`` or a later one is done."""

    offset: int
    size: int
    free_from: int = 0


class Regions:
    """Allocator of regions in a growing memory."""

    NEVER = 1 << 62

    def __init__(self, memory: MappedMemory) -> None:
        self._memory = memory
        self._regions: list[Region] = []
        self._end = _PAGE  # the first page holds the identifying bytes

    def take(self, size: int, done: int) -> Region:
        """Allocate the smallest free region of at least ``size`` bytes, given that collective ``done`` is done."""
        free = [region for region in self._regions if region.size >= size and region.free_from <= done]
        region = min(free, key=lambda region: region.size) if free else self._new(size)
        region.free_from = self.NEVER
        return region

    def _new(self, size: int) -> Region:
        # Sizes vary by a few rows between steps; with an eighth of slack a region fits the next step.
        pages = max(1, math.ceil(size * 9 / 8 / _PAGE))
        region = Region(self._end, pages * _PAGE)
        self._end += region.size
        self._memory.grow(self._end)
        self._regions.append(region)
        return region
