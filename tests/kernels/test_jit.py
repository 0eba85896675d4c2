"""What compilation may change, and what it may not."""

from __future__ import annotations

import math

import numpy as np
import torch

from distkg.kernels.jit import kernel, on_cpu


@kernel
def count_unordered(values: np.ndarray) -> int:
    count = 0
    for value in values:
        if not value <= value:
            count += 1
    return count


@kernel
def total(values: np.ndarray) -> float:
    amount = 0.0
    for value in values:
        amount += value
    return amount


@kernel
def reciprocal(value: float) -> float:
    return 1.0 / value


def test_nan_and_infinity_survive_compilation() -> None:
    assert count_unordered(np.array([1.0, math.nan, math.inf, math.nan])) == 2
    assert math.isnan(total(np.array([1.0, math.nan, 2.0])))
    assert total(np.array([1.0, math.inf])) == math.inf
    assert math.isnan(total(np.array([math.inf, -math.inf])))


def test_division_by_zero_is_infinite_as_in_numpy_and_raises_nothing() -> None:
    assert reciprocal(0.0) == math.inf


def test_tensors_elsewhere_are_not_for_compiled_kernels() -> None:
    here, elsewhere = torch.zeros(2), torch.zeros(2, device="meta")
    assert on_cpu(here, here)
    assert not on_cpu(elsewhere)
    assert not on_cpu(here, elsewhere, here)
