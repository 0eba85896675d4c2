"""Tables in mapped files against tables in memory, and what is left of the files."""

from __future__ import annotations

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


@pytest.mark.parametrize(("memory", "expected"), [(16 * 40 * WIDTH, []), (4 * 40 * WIDTH, [0])])
def test_changed_pages_are_written_early_where_memory_is_short(
    tmp_path: Path, memory: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of 4 × 40 × WIDTH bytes, beside its optimizer state, and four times or once that much memory."""
    monkeypatch.setattr(row_storage, "memory_limit", lambda: memory)
    storage, answers = MappedFiles(tmp_path), list[Any]()
    start = storage._start_writing
    assert start is not None
    storage._start_writing = lambda file: answers.append(start(file))
    table = ShardedTable(40, WIDTH, OPTIMIZERS["rowwise_adagrad"], Ranks.single(), storage=storage)
    answers.clear()
    table.update(torch.tensor([3]), torch.ones(1, WIDTH), RATE)
    assert answers[:1] == expected  # 0: the system has taken it
