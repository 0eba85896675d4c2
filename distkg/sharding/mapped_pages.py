"""Pages of a file that is mapped into memory, read and written as ranges.

A page fault reads one page after the other, and the kernel chooses what to drop. Where a program knows which part of a
file it needs next, whole ranges are read and written many times faster. Everything here is advice to Linux: where it is
not taken, page faults do the work.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

PAGE = mmap.PAGESIZE
_UNMAP, _POPULATE_READ, _POPULATE_WRITE = 4, 22, 23  # madvise(2); the last two since Linux 5.14
_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4  # sync_file_range(2)


class MappedPages:
    """Pages of a mapped file of rows; places are bytes of the file."""

    def __init__(self, file: int, address: int, size: int, row_bytes: int) -> None:
        self._file, self._address, self._size = file, address, size
        # Of a page with several rows one is nearly always changed; marking it so in advance costs less than a fault.
        self._populate = _POPULATE_WRITE if row_bytes <= PAGE // 4 else _POPULATE_READ
        libc: Any = ctypes.CDLL(None)
        self._advise, self._sync = libc.madvise, libc.sync_file_range
        self._advise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
        self._sync.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def start_reading(self, low: int, high: int) -> None:
        """Start to read the pages of a range."""
        low, size = low // PAGE * PAGE, high - low // PAGE * PAGE
        os.posix_fadvise(self._file, low, size, os.POSIX_FADV_WILLNEED)

    def map(self, low: int, high: int) -> None:
        """Wait until the pages of a range are read, and map them, so that their use is no page fault."""
        low, high = low // PAGE * PAGE, min(-(-high // PAGE) * PAGE, self._size)
        self._advise(self._address + low, high - low, self._populate)

    def start_writing(self, low: int = 0, high: int = 0) -> None:
        """Start to write the changed pages of a range, by default all."""
        self._sync(self._file, low, high - low, _WRITE)

    def start_dropping(self, low: int, high: int) -> None:
        """Unmap the pages that lie in a range, and start to write the changed ones."""
        low, high = _inner(low, high)
        if low < high:
            self._advise(self._address + low, high - low, _UNMAP)
            self.start_writing(low, high)

    def drop(self, low: int, high: int) -> None:
        """Wait until the pages of ``start_dropping`` are written, and free their memory."""
        low, high = _inner(low, high)
        if low < high:
            self._sync(self._file, low, high - low, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)
            os.posix_fadvise(self._file, low, high - low, os.POSIX_FADV_DONTNEED)


def _inner(low: int, high: int) -> tuple[int, int]:
    """Return the pages that lie entirely in a range."""
    return -(-low // PAGE) * PAGE, high // PAGE * PAGE
