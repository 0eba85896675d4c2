"""exp and log of compiled kernels against NumPy in float64."""

from __future__ import annotations

import math

import numpy as np

from distkg.kernels.jit import kernel
from distkg.kernels.vectors.fast_math import exp, log


@kernel
def each_exp(x: np.ndarray, out: np.ndarray) -> None:
    for i in range(x.shape[0]):
        out[i] = exp(x[i])


@kernel
def each_log(x: np.ndarray, out: np.ndarray) -> None:
    for i in range(x.shape[0]):
        out[i] = log(x[i])


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got.astype(np.float64) / expected - 1).max())


def test_exp_over_its_range() -> None:
    x = np.linspace(-87, 88, 200_001, dtype=np.float32)
    out = np.empty_like(x)
    each_exp(x, out)
    # x itself has 24 bits: an error of half a unit there is 88 · 6e-8 of the result.
    assert relative_error(out, np.exp(x.astype(np.float64))) < 6e-6
    near = np.abs(x) < 1
    assert relative_error(out[near], np.exp(x[near].astype(np.float64))) < 3e-7


def test_exp_at_points_known_by_heart() -> None:
    x = np.array([0, 1, -1, math.log(2), -1000, math.nan, 1000, -math.inf], dtype=np.float32)
    out = np.empty_like(x)
    each_exp(x, out)
    np.testing.assert_allclose(out[:4], [1, 2.7182818, 0.36787944, 2], rtol=3e-7)
    assert out[4] == out[7] < 2e-38
    assert np.isnan(out[5])
    assert 1e38 < out[6] < np.inf


def test_log_over_its_range() -> None:
    x = np.geomspace(1.2e-38, 3e38, 200_001).astype(np.float32)
    out = np.empty_like(x)
    each_log(x, out)
    expected = np.log(x.astype(np.float64))
    np.testing.assert_allclose(out, expected, rtol=2e-7, atol=2e-7)


def test_log_near_one() -> None:
    x = np.float32(1) + np.linspace(-1e-3, 1e-3, 2001, dtype=np.float32)
    out = np.empty_like(x)
    each_log(x, out)
    np.testing.assert_allclose(out, np.log(x.astype(np.float64)), rtol=3e-7, atol=1e-12)
