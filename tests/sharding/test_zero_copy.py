"""Values taken apart into a head and arrays that others read where they lie."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distkg.sharding.zero_copy import Packed, packed, unpacked


@dataclass
class Pair:
    left: torch.Tensor
    right: dict[str, np.ndarray]


def read_only(parts: Packed) -> Packed:
    """As an object store hands them out: elsewhere, and not to be written to."""
    arrays = [array.copy() for array in parts.arrays]
    for array in arrays:
        array.flags.writeable = False
    return Packed(parts.head, arrays)


def test_tensors_and_arrays_come_back_as_views_of_the_packed_ones() -> None:
    parts = read_only(packed(Pair(torch.tensor([[1.5, 2.0]]), {"a": np.arange(3, dtype=np.int32)})))
    assert sorted(array.nbytes for array in parts.arrays) == [8, 12]
    assert parts.nbytes == 20 + len(parts.head)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = unpacked(parts)
    assert found.left.tolist() == [[1.5, 2.0]]
    assert found.right["a"].tolist() == [0, 1, 2]
    places = {array.ctypes.data for array in parts.arrays}
    assert {found.left.data_ptr(), found.right["a"].ctypes.data} == places


def test_packing_copies_nothing() -> None:
    tensor = torch.arange(1000)
    (array,) = packed([tensor, tensor]).arrays
    assert array.ctypes.data == tensor.data_ptr()
    again = unpacked(packed([tensor, tensor]))
    assert again[0] is again[1]


def test_arrays_of_what_is_read_only_cannot_be_written_to() -> None:
    found = unpacked(read_only(packed(np.zeros(3))))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1.0


@given(
    shape=st.lists(st.integers(0, 3), max_size=3),
    kind=st.sampled_from([torch.int32, torch.int64, torch.float32, torch.bool]),
    turned=st.booleans(),
)
def test_any_tensor_comes_back_as_it_was(shape: list[int], kind: torch.dtype, turned: bool) -> None:
    tensor: Any = torch.randint(0, 2, shape).to(kind)
    tensor = tensor.T if turned and tensor.ndim == 2 else tensor
    found = unpacked(read_only(packed(tensor)))
    assert found.dtype == kind
    assert found.shape == tensor.shape
    assert torch.equal(found, tensor)
