"""Published vectors read where they lie, against one table that is changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distkg.negatives.prefetch.published_rows import HALF_MAX, PublishedRows, half_precision

ROWS = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))


def shards(*ends: int, dtype: type = np.float32) -> list[np.ndarray]:
    table = ROWS.numpy().astype(dtype)
    parts = [table[low:high] for low, high in zip((0, *ends), (*ends, 50), strict=True)]
    for part in parts:
        part.flags.writeable = False  # as arrays from Ray's object store
    return parts


@given(
    st.lists(st.integers(0, 50), max_size=3).map(sorted),
    st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=8), max_size=4),
    st.lists(st.integers(0, 49), max_size=12),
    st.integers(0, 50),
    st.integers(0, 50),
)
def test_slices_and_ids_are_those_of_a_table(
    ends: list[int], newer: list[list[int]], ids: list[int], low: int, high: int
) -> None:
    rows, table = PublishedRows(shards(*ends)), ROWS.clone()
    for number, entities in enumerate(newer):
        chosen = torch.tensor(entities).unique()
        vectors = torch.full((len(chosen), 3), float(number)) + chosen[:, None]
        rows.replace(chosen, vectors)
        table[chosen] = vectors
    wanted = torch.tensor(ids, dtype=torch.int64)
    assert torch.equal(rows[wanted], table[wanted])
    assert torch.equal(rows[wanted[:, None]], table[wanted[:, None]])
    assert torch.equal(rows[low:high], table[low:high])
    assert torch.equal(rows[:], table)
    assert torch.equal(torch.cat(list(rows.split(7))), table)
    assert (len(rows), rows.shape) == (50, (50, 3))


def test_a_shard_is_not_copied() -> None:
    (shard,) = shards()
    rows = PublishedRows([shard])
    assert rows[10:20].data_ptr() == shard[10:].ctypes.data
    rows.replace(torch.tensor([3]), torch.zeros(1, 3))
    assert rows[10:20].data_ptr() == shard[10:].ctypes.data
    assert bool((rows[3:4] == 0).all())
    assert shard[3].any(), "published arrays are read-only"


def test_half_precision_is_read_as_float32() -> None:
    rows = PublishedRows(shards(20, dtype=np.float16))
    assert rows[5:30].dtype == rows[torch.tensor([1, 40])].dtype == torch.float32
    torch.testing.assert_close(rows[:], ROWS, rtol=1e-3, atol=1e-3)
    exact = torch.tensor([[0.125, -7.0, 3.0]])
    rows.replace(torch.tensor([45]), exact / 3)
    assert torch.equal(rows[torch.tensor([45])], exact / 3), "newer vectors keep their precision"


def test_half_precision_has_no_infinity() -> None:
    wide = torch.tensor([[1e30, -1e30, 1.0]]).repeat(40_000, 1)
    values = half_precision(wide)
    assert values.dtype == np.float16
    assert values.shape == (40_000, 3)
    assert (values == np.array([HALF_MAX, -HALF_MAX, 1.0], np.float16)).all()


@pytest.mark.parametrize("rows", [PublishedRows(), PublishedRows([np.empty((0, 3), np.float32)])])
def test_nothing_is_published(rows: PublishedRows) -> None:
    assert len(rows) == 0
    assert list(rows.split(4)) == []
