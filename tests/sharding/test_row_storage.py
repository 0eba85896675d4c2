"""Tables in mapped files against tables in memory, and what is left of the files."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed import run_ranks
from hypothesis import given
from hypothesis import strategies as st

from distkg.sharding import row_storage
from distkg.sharding.exchange import plan_routes
from distkg.sharding.mapped_pages import PAGE, MappedPages
from distkg.sharding.optimizers import OPTIMIZERS
from distkg.sharding.ranks import Ranks
from distkg.sharding.row_storage import MappedFiles, StorageError, _page_ranges, table_folder
from distkg.sharding.table import ShardedTable
from tests.sharding.test_table import RATE, STEPS, WIDTH, work_of

pytestmark = pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="tables on disk need Linux")


def train(ranks: Ranks, folder: str, optimizer: str, dtype: torch.dtype) -> dict[str, Any]:
    """A few updates of a table in the files of a folder, or in memory without one: its rows and optimizer state."""
    storage = MappedFiles(folder) if folder else None
    table = ShardedTable(40, WIDTH, OPTIMIZERS[optimizer], ranks, dtype, storage)
    work = [work_of(40, step, range(ranks.rank, 3, ranks.size)) for step in range(STEPS)]
    torch.manual_seed(5)  # bfloat16 is rounded at random
    for route, (_, gradient) in zip(plan_routes([ids for ids, _ in work], table.shards, ranks), work, strict=True):
        table.prefetch(route)
        table.fetch(route).wait()
        table.update(*table.collect(table.push(route, gradient)), learning_rate=RATE)
    assert table.optimizer is not None
    return {"rows": table.local, **table.optimizer.state}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "adam"])
def test_a_table_on_disk_learns_what_one_in_memory_does(
    tmp_path: Path, size: int, optimizer: str, dtype: torch.dtype
) -> None:
    runs = [
        [train(Ranks.single(), place, optimizer, dtype)]
        if size == 1
        else run_ranks(size, train, place, optimizer, dtype)
        for place in (str(tmp_path), "")
    ]
    for on_disk, in_memory in zip(*runs, strict=True):
        assert on_disk.keys() == in_memory.keys()
        for name, values in in_memory.items():
            assert torch.equal(on_disk[name], values), name
    assert not list(tmp_path.iterdir())


def test_files_have_no_name_and_their_bytes_are_reserved(tmp_path: Path) -> None:
    before = os.statvfs(tmp_path).f_bavail
    rows = MappedFiles(tmp_path).zeros(1 << 20, 16, torch.float32)  # 64 MiB, of which none is written
    assert not list(tmp_path.iterdir())
    assert before - os.statvfs(tmp_path).f_bavail >= 0.9 * rows.nbytes / os.statvfs(tmp_path).f_frsize


def test_nothing_stays_on_disk_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, torch; from distkg.sharding.row_storage import MappedFiles; "
        f"MappedFiles({str(tmp_path)!r}).zeros(1 << 16, 16, torch.float32).fill_(1); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_unnamed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def without(path: Any, flags: int, *mode: int, **more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", without)
    assert bool((MappedFiles(tmp_path).zeros(5, 3, torch.bfloat16) == 0).all())
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_storage, "free_bytes", lambda folder: 1 << 20)
    with pytest.raises(StorageError, match=r"has 0\.00 GiB left, and a part of .* takes 4\.00 GiB\. Free space there"):
        MappedFiles(tmp_path).zeros(1 << 20, 1024, torch.float32)


def test_a_disk_that_fills_at_the_same_time_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="Free space there, or name another folder"):
        MappedFiles(tmp_path).zeros(4, 4, torch.float32)
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_hold_a_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is no folder .*absent on this machine"):
        table_folder(tmp_path / "absent")
    if os.path.ismount("/dev/shm"):
        with pytest.raises(StorageError, match=r"files in /dev/shm lie in memory \(tmpfs\)"):
            table_folder("/dev/shm")


@given(st.sets(st.integers(0, 3000), max_size=40), st.sampled_from([4, 12, 256, 4096, 5000]), st.integers(3001, 3100))
def test_pages_of_rows_against_one_row_after_the_other(rows: set[int], row_bytes: int, count: int) -> None:
    size, address = count * row_bytes, 1 << 20
    ranges = _page_ranges(np.array(sorted(rows), np.int64), address, row_bytes, size)
    pages = {page for row in rows for page in range(row * row_bytes // 4096, ((row + 1) * row_bytes - 1) // 4096 + 1)}
    covered: list[int] = []
    for low, length in ranges.tolist():
        assert (low - address) % 4096 == 0
        assert low - address + length <= size
        covered += range((low - address) // 4096, -(-(low - address + length) // 4096))
    assert covered == sorted(pages)


def test_the_kernel_takes_the_ranges(tmp_path: Path) -> None:
    storage = MappedFiles(tmp_path)
    storage.zeros(5000, 64, torch.float32)
    before = storage._advise
    storage.prefetch(torch.arange(0, 5000, 17))
    assert storage._advise is before  # it was not refused


@pytest.mark.parametrize(("memory", "expected"), [(16 * 40 * WIDTH, 0), (4 * 40 * WIDTH, 2)])
def test_changed_pages_are_written_early_where_memory_is_short(
    tmp_path: Path, memory: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of 4 × 40 × WIDTH bytes, beside its optimizer state, and four times or once that much memory."""
    monkeypatch.setattr(row_storage, "memory_limit", lambda: memory)
    written: list[str] = []
    monkeypatch.setattr(MappedPages, "start_writing", lambda self: written.append("rows and state"))
    storage = MappedFiles(tmp_path)
    table = ShardedTable(40, WIDTH, OPTIMIZERS["rowwise_adagrad"], Ranks.single(), storage=storage)
    table.update(torch.tensor([3]), torch.ones(1, WIDTH), RATE)
    assert len(written) == expected


NO_ROWS = np.empty((0, 2), np.int64)


def pages_in_memory(values: torch.Tensor) -> list[bool]:
    """For each page of a mapped tensor, whether the kernel has it in memory."""
    found = (ctypes.c_ubyte * -(-values.nbytes // PAGE))()
    size = ctypes.c_size_t(values.nbytes)
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(values.data_ptr()), size, found) == 0
    return [bool(each & 1) for each in found]


def test_only_the_ranges_that_are_kept_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 rows of a page each, and their state of 4 bytes."""
    monkeypatch.setattr(row_storage, "memory_limit", lambda: 1 << 20)
    storage = MappedFiles(tmp_path)
    rows, state = (storage.zeros(1000, columns, torch.float32) for columns in (PAGE // 4, 1))
    rows[:] = torch.arange(1000.0)[:, None]
    state[:] = 7
    for ranges in ([[0, 100], [500, 600]], [[0, 100], [900, 1000]], [[900, 1000]], [[900, 1000], [3, 4]]):
        storage.keep(np.array(ranges), NO_ROWS)
        for low, high in ranges:
            rows[low:high] += 1000
    storage.keep(NO_ROWS, np.array([[900, 1000]]))
    storage.keep(NO_ROWS, NO_ROWS)
    storage.keep(np.array([[2, 3]]), NO_ROWS)  # what was dropped is on the disk now
    storage._background.shutdown()
    assert sum(pages_in_memory(rows)) <= 200  # the kernel keeps a few pages beside those that were used last
    expected = torch.arange(1000.0)
    expected[:100] += 2000
    expected[500:600] += 1000
    expected[900:] += 3000
    expected[3] += 1000
    assert torch.equal(rows, expected[:, None].expand_as(rows))
    assert bool((state == 7).all())


def test_files_that_fit_into_the_memory_are_kept_whole(tmp_path: Path) -> None:
    storage = MappedFiles(tmp_path)
    rows = storage.zeros(100, PAGE // 4, torch.float32).fill_(1)
    storage.keep(np.array([[0, 1]]), NO_ROWS)
    assert all(pages_in_memory(rows))
