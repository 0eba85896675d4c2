"""Merged lists beside torch's sort."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from distkg.kernels.merge_sorted import merge_sorted, union_of_fixed_size


@given(lists=st.lists(st.sets(st.integers(0, 50)).map(sorted), max_size=20))
def test_the_union_is_that_of_a_sort(lists: list[list[int]]) -> None:
    values = torch.tensor([value for each in lists for value in each], dtype=torch.int64)
    union, place = merge_sorted(values, [len(each) for each in lists])
    expected, inverse = torch.unique(values, return_inverse=True)
    assert torch.equal(union, expected)
    assert torch.equal(place, inverse)


def test_by_hand() -> None:
    union, place = merge_sorted(torch.tensor([2, 5, 9, 0, 5]), [3, 0, 2])
    assert union.tolist() == [0, 2, 5, 9]
    assert place.tolist() == [1, 2, 3, 0, 2]


@given(values=st.lists(st.integers(0, 50), max_size=40), more=st.integers(0, 5))
def test_a_union_of_fixed_size_ends_with_repetitions(values: list[int], more: int) -> None:
    distinct = sorted(set(values))
    size = len(distinct) + (more if values else 0)
    union, place = union_of_fixed_size(torch.tensor(values, dtype=torch.int64), size)
    assert union.tolist() == distinct + distinct[-1:] * (size - len(distinct))
    assert [distinct[at] for at in place.tolist()] == values
    assert place.numel() == 0 or int(place.max()) < len(distinct)
