"""Equal contiguous ranges of ids."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distkg.sharding.shards import Shards

sizes = given(rows=st.integers(1, 200), size=st.integers(1, 9))


@pytest.mark.parametrize(
    ("rows", "size", "ranges"),
    [
        (10, 1, [(0, 10)]),
        (10, 4, [(0, 3), (3, 6), (6, 9), (9, 10)]),
        (4, 3, [(0, 2), (2, 4), (4, 4)]),
        (2, 4, [(0, 1), (1, 2), (2, 2), (2, 2)]),
    ],
)
def test_ranges_written_by_hand(rows: int, size: int, ranges: list[tuple[int, int]]) -> None:
    shards = Shards(rows, size)
    assert [shards.range(rank) for rank in range(size)] == ranges
    assert [shards.count(rank) for rank in range(size)] == [high - low for low, high in ranges]


@sizes
def test_every_id_has_one_place(rows: int, size: int) -> None:
    shards = Shards(rows, size)
    ranges = [shards.range(rank) for rank in range(size)]
    assert [i for low, high in ranges for i in range(low, high)] == list(range(rows))
    assert max(map(shards.count, range(size))) == shards.per_rank


@given(rows=st.integers(1, 100), size=st.integers(1, 7), data=st.data())
def test_splits_count_the_ids_of_each_owner(rows: int, size: int, data: st.DataObject) -> None:
    ids = sorted(data.draw(st.sets(st.integers(0, rows - 1))))
    shards = Shards(rows, size)
    expected = [sum(low <= i < high for i in ids) for low, high in map(shards.range, range(size))]
    assert shards.counts_of(torch.tensor(ids, dtype=torch.int64)).tolist() == expected
    assert shards.counts_of(torch.tensor([*ids, *ids[-1:] * 3], dtype=torch.int64)).tolist() == expected
