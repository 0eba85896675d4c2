"""Rows read from files are those of the table, whichever files hold them."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from distributed import run_ranks
from hypothesis import given
from hypothesis import strategies as st

from distkg.sharding.checkpoint.checkpoint import CheckpointError, Checkpoints, State
from distkg.sharding.checkpoint.stored_table import StoredRows, StoredTable
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards


def stored(folder: Path, table: torch.Tensor, cuts: list[int], before: int) -> StoredTable:
    """The table in files cut at rows, each behind some bytes of something else."""
    pieces = []
    for number, (low, high) in enumerate(pairwise([0, *sorted(cuts), len(table)])):
        path = folder / f"{number}"
        path.write_bytes(b"x" * before + table[low:high].contiguous().view(torch.uint8).numpy().tobytes())
        pieces.append(StoredRows(os.open(path, os.O_RDONLY), before, low, high))
        path.unlink()  # a checkpoint may be deleted while it is read
    return StoredTable(pieces, *table.shape, Ranks.single(), table.dtype)


@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 1000), max_size=3),
    before=st.integers(0, 70),
    half=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_ranges_and_picked_rows_are_those_of_the_table(tmp_path_factory, rows, width, cuts, before, half, seed) -> None:
    random = torch.Generator().manual_seed(seed)
    table = torch.randn(rows, width, generator=random).to(torch.bfloat16 if half else torch.float32)
    found = stored(tmp_path_factory.mktemp("rows"), table, [cut % (rows + 1) for cut in cuts], before)
    low, high = sorted(torch.randint(0, rows + 1, (2,), generator=random).tolist())
    assert torch.equal(found.rows(low, high), table[low:high])
    ids = torch.randint(0, rows, (int(torch.randint(0, 30, (), generator=random)),), generator=random)
    assert torch.equal(found.take(ids), table[ids])
    assert torch.equal(found.gather(ids), table[ids].float())


def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(bytes(11))
    table = StoredTable([StoredRows(os.open(tmp_path / "0", os.O_RDONLY), 0, 0, 3)], 3, 1, Ranks.single())
    assert table.rows(0, 2).tolist() == [[0.0], [0.0]]
    with pytest.raises(OSError, match="became shorter"):
        table.rows(0, 3)


def table_of(rows: int) -> torch.Tensor:
    return torch.arange(rows * 3, dtype=torch.float32).reshape(rows, 3)


def save(ranks: Ranks, folder: Path, rows: int) -> None:
    low, high = Shards(rows, ranks.size).range(ranks.rank)
    checkpoints = Checkpoints(folder, ranks, keep=1)
    checkpoints.save("a", State({"entities": table_of(rows)[low:high]}, {"bias": torch.ones(2)}, rows), {})
    checkpoints.wait()


def read(ranks: Ranks, folder: Path, rows: int) -> list[list[float]]:
    table = Checkpoints(folder, ranks, keep=1).open_table("a", "entities", (rows, 3), torch.float32)
    assert table.rows(0, rows).tolist() == table_of(rows).tolist()
    return table.rows(*table.shards.range(ranks.rank)).tolist()


@pytest.mark.parametrize("rows", [4, 7])
def test_a_checkpoint_of_three_is_read_by_one_two_and_four(tmp_path: Path, rows: int) -> None:
    run_ranks(3, save, tmp_path, rows)
    expected = table_of(rows).tolist()
    assert read(Ranks.single(), tmp_path, rows) == expected
    for size in (2, 4):
        assert [row for part in run_ranks(size, read, tmp_path, rows) for row in part] == expected


def test_another_table_is_refused(tmp_path: Path) -> None:
    save(Ranks.single(), tmp_path, 4)
    checkpoints = Checkpoints(tmp_path, Ranks.single(), keep=1)
    with pytest.raises(
        CheckpointError, match=r"entities is sharded float32 \[4, 3\] in the checkpoint, .*\[5, 3\] here"
    ):
        checkpoints.open_table("a", "entities", (5, 3), torch.float32)
    with pytest.raises(CheckpointError, match="bfloat16"):
        checkpoints.open_table("a", "entities", (4, 3), torch.bfloat16)
    with pytest.raises(CheckpointError, match="vectors is missing in the checkpoint"):
        checkpoints.open_table("a", "vectors", (4, 3), torch.float32)
    file = next((tmp_path / "a").glob("rank-*"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoints.open_table("a", "entities", (4, 3), torch.float32)
