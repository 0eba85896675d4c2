"""Settings of the allocator and the peak of memory, on systems that have them and on those that do not."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from distkg import process_memory
from distkg.process_memory import advise_huge_pages, keep_freed_memory, peak_rss_mb, private_memory, return_freed_memory


@pytest.mark.parametrize(("system", "peak"), [("linux", 2048.0), ("darwin", 2.0)])
def test_the_peak_is_in_kilobytes_on_linux_and_in_bytes_on_macos(
    system: str, peak: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=2_000_000))
    monkeypatch.setattr(process_memory, "resource", usage)
    monkeypatch.setattr(sys, "platform", system)
    assert peak_rss_mb() == peak


def test_without_a_peak_the_present_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory, "resource", None)
    present = psutil.Process().memory_info().rss / 1e6
    assert 0.5 * present < peak_rss_mb() < 2 * present


class Library:
    """A C library, with what was set of its allocator."""

    def __init__(self) -> None:
        self.settings: dict[int, int] = {}

    def mallopt(self, name: int, value: int) -> None:
        self.settings[name] = value


def test_glibc_keeps_blocks_up_to_32_mib_in_one_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(process_memory.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(sys, "platform", "linux")
    keep_freed_memory()
    assert library.settings == {-8: 1, -3: 32 << 20, -1: 1 << 30}


def test_other_systems_and_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(process_memory.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory()
    assert not library.settings
    monkeypatch.setattr(process_memory.ctypes, "CDLL", lambda name: object())  # musl has no mallopt
    monkeypatch.setattr(sys, "platform", "linux")
    keep_freed_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the peak of a process")
def test_memory_is_returned_and_a_new_peak_begins() -> None:
    return_freed_memory()
    before, size = private_memory(), 200 << 20
    held = np.ones(size, np.uint8)
    assert private_memory() - before > 0.9 * size
    del held
    assert peak_rss_mb() * 1e6 - before > 0.9 * size
    return_freed_memory()
    assert private_memory() - before < 0.1 * size
    assert peak_rss_mb() * 1e6 < psutil.Process().memory_info().rss + 0.1 * size


class Advised:
    """A C library, with the ranges of memory that were to get huge pages."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int, int]] = []

    def madvise(self, address: ctypes.c_size_t, size: ctypes.c_size_t, advice: int) -> None:
        self.ranges.append((address.value, size.value, advice))


def test_only_large_blocks_get_huge_pages_and_only_those_that_lie_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    library, mib = Advised(), 1 << 20
    monkeypatch.setattr(process_memory.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(sys, "platform", "linux")
    advise_huge_pages(3 * mib, 31 * mib)  # lies in the heap of glibc
    advise_huge_pages(3 * mib, 40 * mib)
    assert library.ranges == [(4 * mib, 38 * mib, 14)]
    monkeypatch.setattr(sys, "platform", "darwin")
    advise_huge_pages(3 * mib, 40 * mib)
    assert len(library.ranges) == 1
