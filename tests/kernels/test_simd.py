"""Vectors in kernels: rests of rows, signs, sums, roots, and arrays that cannot be loaded."""

from __future__ import annotations

import numpy as np
import pytest
from numba.core.errors import NumbaError

from distkg.compilation import njit
from distkg.kernels.vectors import simd
from distkg.kernels.vectors.simd import (
    LANES,
    load,
    load_rest,
    magnitude,
    multiply_add,
    negative,
    sign_of,
    spread,
    store,
    store_rest,
    total,
    two_inverse_roots,
)


@njit(error_model="numpy")
def each(source: np.ndarray, out: np.ndarray) -> None:
    """Write functions of a row of LANES numbers to the rows of ``out``."""
    x = load(source, 0, 0)
    store(out, 0, 0, sign_of(x))
    store(out, 1, 0, magnitude(x))
    store(out, 2, 0, negative(x))
    store(out, 3, 0, multiply_add(x, x, spread(np.float32(1))))
    out[4, 0] = total(x)


def test_functions_of_each_lane() -> None:
    source, out = np.zeros((1, LANES), np.float32), np.full((5, LANES), 9, np.float32)
    source[0, :6] = [3, -0.5, 0, -0.0, 1e-20, -3e38]
    each(source, out)
    assert out[0, :6].tolist() == [1, -1, 0, 0, 1, -1]
    assert out[1, :4].tolist() == [3, 0.5, 0, 0]
    assert out[2, :3].tolist() == [-3, 0.5, 0]
    assert out[3, :3].tolist() == [10, 1.25, 1]
    source[0] = np.arange(LANES)
    each(source, out)
    assert out[4, 0] == LANES * (LANES - 1) / 2


def test_signs_keep_nan() -> None:
    source, out = np.full((1, LANES), np.nan, np.float32), np.zeros((5, LANES), np.float32)
    each(source, out)
    assert np.isnan(out[:4]).all()


@njit(error_model="numpy")
def copy_rest(source: np.ndarray, out: np.ndarray, count: int) -> np.float32:
    x = load_rest(source, 0, 1, count)
    store_rest(out, 0, 1, count, x)
    return total(x)


@pytest.mark.parametrize("count", [1, 3, LANES - 1])
def test_a_rest_touches_nothing_behind_it(count: int) -> None:
    source, out = np.arange(1, LANES + 2, dtype=np.float32)[None], np.full((1, LANES + 1), -1, np.float32)
    assert copy_rest(source, out, count) == sum(range(2, count + 2))
    assert out[0].tolist() == [-1, *range(2, count + 2), *[-1] * (LANES - count)]


@njit(error_model="numpy")
def inverse_roots(source: np.ndarray, out: np.ndarray) -> None:
    for i in range(source.shape[0]):
        estimate, correction = two_inverse_roots(load(source, i, 0))
        store(out, i, 0, estimate * correction)


def test_the_error_of_inverse_roots_is_as_stated() -> None:
    numbers = np.geomspace(1e-30, 1e37, 1000 * LANES).astype(np.float32).reshape(-1, LANES)
    out = np.empty_like(numbers)
    inverse_roots(numbers, out)
    exact = 2 / np.sqrt(numbers.astype(np.float64))
    assert np.abs(out / exact - 1).max() < 4e-7


@njit(error_model="numpy")
def first_lanes(source: np.ndarray) -> np.float32:
    return total(load(source, 0, 0))


@pytest.mark.parametrize(
    "source",
    [np.zeros((4, 2 * LANES), np.float32)[:, ::2], np.zeros((LANES, 4), np.float32).T, np.zeros((1, LANES))],
    ids=["columns apart", "transposed", "float64"],
)
def test_what_cannot_be_loaded_is_refused(source: np.ndarray) -> None:
    with pytest.raises((TypeError, NumbaError), match="contiguous arrays of float32"):
        first_lanes(source)


def test_a_vector_has_a_power_of_two_of_lanes() -> None:
    assert simd.LANES in (8, 16)
