"""Memory of this process: settings of the allocator that keep freed memory, so that buffers of the next step cause no
page faults; its return to the system; the resident memory and its peak."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

import psutil

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_ALLOWED = 32 << 20
_HUGE_PAGE, _MADV_HUGEPAGE = 2 << 20, 14  # bytes; madvise(2)


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


def return_freed_memory() -> None:
    """Return freed memory to the system, and begin a new peak of the resident memory; Linux only, does nothing
    elsewhere."""
    gc.collect()
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    with suppress(OSError):  # the system does not permit it: the peak stays that since the start
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def advise_huge_pages(address: int, size: int) -> None:
    """Advise Linux to back ``size`` bytes from ``address`` on with huge pages; does nothing elsewhere.

    Blocks below ``_LARGEST_ALLOWED`` stay as they are: glibc serves them from its heap, whose pages are in use already.
    """
    if size < _LARGEST_ALLOWED or sys.platform != "linux":
        return
    low, high = -(-address // _HUGE_PAGE) * _HUGE_PAGE, (address + size) // _HUGE_PAGE * _HUGE_PAGE
    # An error means a kernel without huge pages, where small ones do.
    ctypes.CDLL(None).madvise(ctypes.c_size_t(low), ctypes.c_size_t(high - low), _MADV_HUGEPAGE)


def private_memory() -> int:
    """Return the resident bytes of this process that it does not share with others, such as a node's object store."""
    resident = psutil.Process().memory_info()
    return int(resident.rss - getattr(resident, "shared", 0))


def peak_rss_mb() -> float:
    """Return the peak resident memory of this process (MB); the current one if the system keeps no peak."""
    if resource is None:
        return psutil.Process().memory_info().rss / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
