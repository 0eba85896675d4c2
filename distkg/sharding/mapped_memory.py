"""Memory that processes of one machine map together, and which parts of it are free.

It is anonymous (``memfd_create``): ``/dev/shm``, which holds 64 MB in many containers, does not bound it, and it is
gone with the last process that maps it, however that ends.
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
    """Size of one row of a tensor, which may have none."""
    return math.prod(like.shape[1:]) * like.element_size()


class MappedMemory:
    """An anonymous file that can grow, mapped.

    Attributes:
        descriptor: of the file, in this process.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._bytes = torch.empty(0, dtype=torch.uint8)
        weakref.finalize(self, os.close, descriptor)  # maps and peers keep the memory that they still use

    @classmethod
    def new(cls, begin: bytes) -> MappedMemory:
        """Memory of this process; it starts with the bytes ``begin``, by which others recognise it.

        Raises:
            OSError: the system has no such memory (only Linux has), or does not let this process use it.
        """
        if not all(hasattr(os, call) for call in ("memfd_create", "posix_fallocate")):
            raise OSError("this system has no anonymous memory with a descriptor")
        memory = cls(os.memfd_create("distkg"))
        memory.grow(_PAGE)  # sandboxes may refuse it; known now, it costs nothing but sockets
        os.pwrite(memory.descriptor, begin, 0)
        return memory

    @classmethod
    def of_peer(cls, path: str, begin: bytes) -> MappedMemory:
        """Memory of another process, by the path of its descriptor.

        Raises:
            OSError: there is none, this process may not open it, or it begins otherwise: another process's.
        """
        memory = cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        if os.pread(memory.descriptor, len(begin), 0) != begin:
            raise OSError(f"{path} is not the memory that was offered")
        return memory

    def view(self, offset: int, count: int, like: Tensor) -> Tensor:
        """``count`` rows from a byte offset on, with the dtype and row shape of ``like``."""
        end = offset + count * row_bytes(like)
        if end > len(self._bytes):
            self._map()
        return self._bytes[offset:end].view(like.dtype).view(count, *like.shape[1:])

    def grow(self, size: int) -> None:
        """Reserve ``size`` bytes in all: too little memory is an error here, and not a signal at the first write."""
        os.posix_fallocate(self.descriptor, 0, size)

    def _map(self) -> None:
        # Earlier maps live as long as a tensor looks into them, and show the same bytes.
        mapped = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
        self._bytes = torch.frombuffer(mapped, dtype=torch.uint8)


@dataclass
class Region:
    """A part of a memory, in bytes; free once collective number ``free_from`` or a later one is done."""

    offset: int
    size: int
    free_from: int = 0


class Regions:
    """Hands out parts of a growing memory, and takes them back."""

    NEVER = 1 << 62

    def __init__(self, memory: MappedMemory) -> None:
        self._memory = memory
        self._regions: list[Region] = []
        self._end = _PAGE  # the first page is for what the memory begins with

    def take(self, size: int, done: int) -> Region:
        """At least ``size`` bytes, the fewest that are free now that collective number ``done`` is."""
        free = [region for region in self._regions if region.size >= size and region.free_from <= done]
        region = min(free, key=lambda region: region.size) if free else self._new(size)
        region.free_from = self.NEVER
        return region

    def _new(self, size: int) -> Region:
        # Sizes differ from step to step by a few rows; with an eighth of slack the next one fits.
        pages = max(1, math.ceil(size * 9 / 8 / _PAGE))
        region = Region(self._end, pages * _PAGE)
        self._end += region.size
        self._memory.grow(self._end)
        self._regions.append(region)
        return region
