"""Storage of the rows of a table: memory of a device, or a file that is mapped into memory.

A mapped file lets a table be larger than the memory that a process may use: the kernel keeps the pages that are in
use, and writes the others back. The file has no name, so nothing stays on disk when its process ends, however it ends.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from distkg.data.storage.local_path import local_path
from distkg.host_memory import memory_limit
from distkg.sharding.mapped_pages import PAGE, MappedPages

RowRange = tuple[int, int]


_PROCESS_MADVISE, _WILL_NEED, _MOST_RANGES = 440, 3, 1024  # Linux: system call, advice, ranges in a call (IOV_MAX)
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


class StorageError(ValueError):
    """Error of a folder that cannot hold the rows of a table; the message says why and what to do."""


class RowStorage(Protocol):
    """Allocator of the tensors of a table."""

    def zeros(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return zeros [rows, columns]."""
        ...

    def prefetch(self, rows: Tensor) -> None:
        """Announce that rows int64 [k], sorted, of all tensors are about to be read."""
        ...

    def keep(self, needed: np.ndarray, following: np.ndarray) -> None:
        """Announce the ranges of rows, int64 [n, 2], that the next step needs, and those that steps after it will."""
        ...

    def write_back(self) -> None:
        """Announce that rows were changed."""
        ...

    @property
    def on_disk(self) -> bool:
        """Return whether the tensors lie in files."""
        ...


class DeviceMemory:
    """``RowStorage`` in the memory of a device."""

    on_disk = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def zeros(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(rows, columns, dtype=dtype, device=self._device)

    def prefetch(self, rows: Tensor) -> None:
        """Do nothing: the rows are in memory."""

    def keep(self, needed: np.ndarray, following: np.ndarray) -> None:
        """Do nothing: the rows are in memory."""

    def write_back(self) -> None:
        """Do nothing: the rows are in memory."""


class MappedFiles:
    """``RowStorage`` in files of a folder, mapped into memory; Linux.

    All bytes are reserved when a file is made, so that a full disk is an error there and no signal at a later write.
    """

    on_disk = True

    def __init__(self, folder: str | Path = "") -> None:
        """Use ``folder``, or the folder of temporary files if it is empty.

        Raises:
            StorageError: no such folder, or one whose files lie in memory.
        """
        self.folder = table_folder(folder)
        self._files: list[Tensor] = []
        self._pages: list[MappedPages] = []
        self._open: list[int] = []
        self._kept, self._needed = False, set[RowRange]()
        self._reads: dict[RowRange, Future[None]] = {}  # ranges that are in memory, or being read
        self._background = ThreadPoolExecutor(1, "distkg-rows")
        self._written: list[tuple[MappedPages, int, int]] = []  # ranges that are dropped when they are on the disk
        self._bytes, self._memory = 0, memory_limit()
        self._advise: Callable[[np.ndarray], bool] | None = _advisor()

    def zeros(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return zeros [rows, columns] that are mapped from a new file.

        Raises:
            StorageError: too little space, or a file system that cannot map files.
        """
        size = rows * columns * dtype.itemsize
        if not size:
            return torch.zeros(rows, columns, dtype=dtype)
        values = torch.frombuffer(self._mapped(size), dtype=dtype).view(rows, columns)
        self._files.append(values)
        self._pages.append(MappedPages(self._open[-1], values.data_ptr(), size, columns * dtype.itemsize))
        self._bytes += size
        return values

    def prefetch(self, rows: Tensor) -> None:
        """Ask the kernel to read the pages of rows, many at once; a page fault waits for one page after the other."""
        if self._advise is None:
            return
        for values in self._files:
            ranges = _page_ranges(rows.numpy(), values.data_ptr(), values[:1].nbytes, values.nbytes)
            if not self._advise(ranges):
                self._advise = None
                return

    def keep(self, needed: np.ndarray, following: np.ndarray) -> None:
        """Wait until the rows that the last call needed are in memory; start to read these, and to write back and drop
        those that neither call names.

        Nothing is done if the files are smaller than half of the memory.
        """
        if self._bytes <= self._memory / 2:
            return
        for needed_range in self._needed:
            self._reads[needed_range].result()
        self._needed = _as_ranges(needed)
        first, later = self._needed - self._reads.keys(), _as_ranges(following) - self._needed - self._reads.keys()
        wanted = self._needed | _as_ranges(following)
        gone = self._reads.keys() - wanted if self._kept else {(0, len(self._files[0]))}
        self._kept = True
        for ranges, dropped in ((first, gone), (later, set[RowRange]())):
            if ranges or dropped:
                move = self._background.submit(self._move, sorted(dropped), sorted(ranges))
                self._reads |= dict.fromkeys(ranges, move)
        for dropped_range in gone:
            self._reads.pop(dropped_range, None)

    def _move(self, gone: Sequence[RowRange], new: Sequence[RowRange]) -> None:
        """Start to write back and drop ranges of rows, and read others meanwhile."""
        read = self._pages_of(new)
        written, self._written = self._written, self._pages_of(gone)
        for pages, low, high in self._written:
            pages.start_dropping(low, high)
        for pages, low, high in read:
            pages.start_reading(low, high)
        for pages, low, high in read:
            pages.map(low, high)
        for pages, low, high in written:
            pages.drop(low, high)

    def _pages_of(self, ranges: Sequence[RowRange]) -> list[tuple[MappedPages, int, int]]:
        """Return the bytes that ranges of rows have in each file."""
        sizes = [(pages, values[:1].nbytes) for pages, values in zip(self._pages, self._files, strict=True)]
        return [(pages, low * size, high * size) for pages, size in sizes for low, high in ranges]

    def write_back(self) -> None:
        """Start to write changed pages to the files, if these are larger than half of the memory.

        The kernel could else find nothing but changed pages when it needs one: it then waits for the disk at each page
        (always so under version 1 of control groups).
        """
        if not self._kept and self._bytes > self._memory / 2:
            for pages in self._pages:
                pages.start_writing()

    def __del__(self) -> None:
        for file in getattr(self, "_open", ()):
            os.close(file)

    def _mapped(self, size: int) -> mmap.mmap:
        free = free_bytes(self.folder)
        if free < size:
            raise StorageError(_too_little(self.folder, size, free))
        try:
            file = _unnamed_file(self.folder)
            self._open.append(file)
            os.posix_fallocate(file, 0, size)
            mapped = mmap.mmap(file, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(_too_little(self.folder, size, free_bytes(self.folder))) from error
            raise StorageError(
                f"train.table_folder: no file of {size / 2**30:.2f} GiB can be mapped in {self.folder} "
                f"({error.strerror or error}). Name a folder on a local disk"
            ) from error
        if self._advise is None:  # a page fault would read 32 pages for one row
            mapped.madvise(mmap.MADV_RANDOM)
        return mapped


def table_folder(folder: str | Path = "") -> Path:
    """Return the folder of mapped tables: ``folder``, or that of temporary files if it is empty.

    Raises:
        StorageError: no such folder, its files lie in memory, or the system is not Linux.
    """
    if not (hasattr(os, "O_TMPFILE") and hasattr(os, "posix_fallocate")):
        raise StorageError("train.table_storage: disk needs Linux. Set it to memory")
    path = local_path(folder or tempfile.gettempdir(), "train.table_folder")
    if not path.is_dir():
        raise StorageError(f"train.table_folder: there is no folder {path} on this machine. Make it, or name another")
    kind = _file_system(path.resolve())
    if kind in _IN_MEMORY:
        raise StorageError(
            f"train.table_folder: files in {path} lie in memory ({kind}). Name a folder on a disk, or set "
            "train.table_storage: memory"
        )
    return path


def free_bytes(folder: Path) -> int:
    """Return the bytes that a user may still write in a folder."""
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize


def _too_little(folder: Path, size: int, free: int) -> str:
    return (
        f"train.table_folder: {folder} has {free / 2**30:.2f} GiB left, and a part of the entity table or of its "
        f"optimizer state takes {size / 2**30:.2f} GiB. Free space there, or name another folder"
    )


def _unnamed_file(folder: Path) -> int:
    """Open a new file without a name in a folder, for reading and writing."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(folder, flags | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise
    file, path = tempfile.mkstemp(prefix=".distkg-table-", dir=folder)  # a file system without unnamed files
    os.unlink(path)
    return file


def _file_system(path: Path) -> str:
    """Return the type of the file system of a folder; empty if it is unknown."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    mounts = [(Path(fields[1].replace("\\040", " ")), fields[2]) for fields in map(str.split, lines)]
    return max(
        ((len(place.parts), number, kind) for number, (place, kind) in enumerate(mounts) if path.is_relative_to(place)),
        default=(0, 0, ""),
    )[2]


def _as_ranges(ranges: np.ndarray) -> set[RowRange]:
    return {(low, high) for low, high in ranges.tolist()}


def _page_ranges(rows: np.ndarray, address: int, row_bytes: int, size: int) -> np.ndarray:
    """Return the ranges of pages that hold sorted rows: uint64 [n, 2], address and bytes."""
    first = rows * row_bytes // PAGE
    last = (rows * row_bytes + row_bytes - 1) // PAGE
    if not len(first):
        return np.empty((0, 2), np.uint64)
    starts = np.flatnonzero(np.append(True, first[1:] > last[:-1] + 1))
    low, high = first[starts] * PAGE, (last[np.append(starts[1:], len(last)) - 1] + 1) * PAGE
    return np.stack([low + address, np.minimum(high, size) - low], 1).astype(np.uint64)


def _advisor() -> Callable[[np.ndarray], bool] | None:
    """Return a function that asks the kernel to read ranges of memory, and returns whether it could; None if this
    system has no such call."""
    try:
        process = os.pidfd_open(os.getpid())
        call: Any = ctypes.CDLL(None, use_errno=True).syscall
    except (AttributeError, OSError):
        return None
    call.restype = ctypes.c_long

    def advise(ranges: np.ndarray) -> bool:
        for low in range(0, len(ranges), _MOST_RANGES):
            part = np.ascontiguousarray(ranges[low : low + _MOST_RANGES])
            arguments = (process, part.ctypes.data, len(part), _WILL_NEED, 0)
            if call(ctypes.c_long(_PROCESS_MADVISE), *map(ctypes.c_size_t, arguments)) < 0:
                return False
        return True

    weakref.finalize(advise, os.close, process)
    return advise
