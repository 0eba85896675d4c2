"""One NaN or infinity is found wherever it lies."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distkg.kernels.finite import is_finite, non_finite

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    place=st.floats(0, 1, exclude_max=True),
)
def test_one_bad_value_among_the_largest_is_found(
    rows: int, columns: int, dtype: torch.dtype, value: float, place: float
) -> None:
    tensor = torch.full((rows, columns), torch.finfo(dtype).max, dtype=dtype)
    tensor[::2] *= -1
    assert is_finite(tensor)
    tensor.view(-1)[int(place * tensor.numel())] = value
    assert not is_finite(tensor)
    assert not is_finite(tensor.T)


@pytest.mark.parametrize("tensor", [torch.zeros(0, 4), torch.tensor(3), torch.tensor([True]), torch.tensor(0.5)])
def test_tensors_that_hold_only_numbers(tensor: torch.Tensor) -> None:
    assert is_finite(tensor)


def test_the_tensors_are_named() -> None:
    tensors = {"b": torch.tensor([1.0, math.nan]), "a": torch.tensor(-math.inf), "c": torch.ones(2)}
    assert non_finite(tensors) == ["a", "b"]
