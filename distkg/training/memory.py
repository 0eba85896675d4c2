"""Keeps freed memory in the process, so that the buffers of the next step cost no page faults."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_ALLOWED = 32 << 20


def keep_freed_memory() -> None:
    """Tell glibc to serve blocks up to 32 MiB from one heap that it does not hand back; elsewhere do nothing.

    By default each tensor of a batch is mapped, faulted in page by page and unmapped again, every step.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_ALLOWED)
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)
