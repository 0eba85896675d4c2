"""Settings of the memory allocator that keep freed memory, so that buffers of the next step cause no page faults;
and the peak memory of this process."""

from __future__ import annotations

import ctypes
import sys

import psutil

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_ALLOWED = 32 << 20


def keep_freed_memory() -> None:
    """Make glibc serve blocks up to 32 MiB from one heap that it does not return to the system; does nothing elsewhere.

    By default each tensor of a batch is mapped, faulted in page by page and unmapped again, at every step.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_ALLOWED)
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def peak_rss_mb() -> float:
    """Return the peak resident memory of this process (MB); the current one if the system keeps no peak."""
    if resource is None:
        return psutil.Process().memory_info().rss / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
