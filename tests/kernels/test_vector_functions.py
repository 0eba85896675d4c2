"""Functions of vectors in kernels against NumPy in float64, of one register and of two."""

from __future__ import annotations

import numpy as np
import pytest

from distkg.kernels.jit import kernel
from distkg.kernels.vectors.functions import exp, inverse, log, log_of_one_plus, softplus
from distkg.kernels.vectors.simd import (
    LANES,
    WIDE,
    keep_first,
    largest,
    load,
    load_wide,
    spread_as,
    store,
    store_wide,
    total,
    where_above,
    where_at_most,
)

FUNCTIONS = ["exp", "inverse", "log", "log of one plus", "softplus", "its slope"]


@kernel
def each(which: int, x: np.ndarray, out: np.ndarray) -> None:
    for j in range(0, x.shape[1], WIDE):
        value = load_wide(x, 0, j)
        if which == 0:
            result = exp(value)
        elif which == 1:
            result = inverse(value)
        elif which == 2:
            result = log(value)
        elif which == 3:
            result = log_of_one_plus(value)
        elif which == 4:
            result = softplus(value)[0]
        else:
            result = softplus(value)[1]
        store_wide(out, 0, j, result)


@kernel
def each_narrow(x: np.ndarray, out: np.ndarray) -> None:
    for j in range(0, x.shape[1], LANES):
        store(out, 0, j, exp(log(inverse(load(x, 0, j)))))


def of(which: str, x: np.ndarray) -> np.ndarray:
    padded = np.ones((1, -(-len(x) // WIDE) * WIDE), np.float32)
    padded[0, : len(x)] = x
    out = np.empty_like(padded)
    each(FUNCTIONS.index(which), padded, out)
    return out[0, : len(x)]


@pytest.mark.parametrize(
    ("which", "low", "high", "error"),
    [
        ("exp", -1, 1, 3e-7),
        ("exp", -69, 88, 6e-6),
        ("inverse", 0.01, 300, 3e-7),
        ("log of one plus", 1e-6, 1, 3e-7),
        ("softplus", -60, 60, 6e-6),
        ("its slope", -60, 60, 6e-6),
    ],
)
def test_relative_errors(which: str, low: float, high: float, error: float) -> None:
    exact = {
        "exp": np.exp,
        "inverse": np.reciprocal,
        "log of one plus": np.log1p,
        "softplus": lambda x: np.logaddexp(0, x),
        "its slope": lambda x: 1 / (1 + np.exp(-x)),
    }
    x = np.linspace(low, high, 100_001).astype(np.float32)
    np.testing.assert_allclose(of(which, x), exact[which](x.astype(np.float64)), rtol=error)


def test_log_over_its_range() -> None:
    x = np.geomspace(1.2e-38, 3e38, 100_001).astype(np.float32)
    np.testing.assert_allclose(of("log", x), np.log(x.astype(np.float64)), rtol=3e-7, atol=3e-8)


def test_points_known_by_heart() -> None:
    np.testing.assert_allclose(of("exp", np.array([0, 1, -1])), [1, 2.7182818, 0.36787944], rtol=3e-7)
    assert of("exp", np.array([-70, -1000, -np.inf])).tolist() == [0, 0, 0]
    np.testing.assert_allclose(of("log", np.array([1, 2, 0.5])), [0, 0.6931472, -0.6931472], atol=1e-7)
    np.testing.assert_allclose(of("softplus", np.array([0, 100, -100])), [0.6931472, 100, 0], atol=1e-7)
    np.testing.assert_allclose(of("its slope", np.array([0, 100, -100])), [0.5, 1, 0], atol=1e-7)


@pytest.mark.parametrize("which", ["exp", "softplus", "its slope"])
def test_nan_stays(which: str) -> None:
    assert np.isnan(of(which, np.array([np.nan, 1.0]))).tolist() == [True, False]


def test_vectors_of_one_register() -> None:
    x = np.linspace(0.5, 50, 4 * LANES, dtype=np.float32)[None]
    out = np.empty_like(x)
    each_narrow(x, out)
    np.testing.assert_allclose(out, 1 / x.astype(np.float64), rtol=2e-6)


@kernel
def choices(x: np.ndarray, out: np.ndarray, count: int) -> tuple[float, float]:
    value = load_wide(x, 0, 0)
    one, two = spread_as(value, np.float32(1)), spread_as(value, np.float32(2))
    store_wide(out, 0, 0, where_above(value, one, value, two))
    store_wide(out, 1, 0, where_at_most(value, one, two, value))
    store_wide(out, 2, 0, keep_first(value, count, two))
    return largest(value), total(keep_first(value, count, one - one))


def test_choices_by_lane() -> None:
    x, out = np.full((1, WIDE), 0.5, np.float32), np.empty((3, WIDE), np.float32)
    x[0, :4] = 1, 3, np.nan, -7
    assert choices(x, out, 2) == (3, 4)
    np.testing.assert_array_equal(out[0, :5], [2, 3, 2, 2, 2])
    np.testing.assert_array_equal(out[1, :5], [2, 3, np.nan, 2, 2])
    np.testing.assert_array_equal(out[2, :5], [1, 3, 2, 2, 2])
