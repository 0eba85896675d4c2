"""Products of tiles against float64, with matrices of any size: no element of another row or column is touched."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.compilation import njit
from distkg.kernels.vectors.tiles import FEW, LANES, ROWS, VECTORS, multiply, padded, turn


@njit()
def zeros(rows: int, columns: int) -> np.ndarray:
    return padded(rows, columns)


def filled(rows: int, columns: int, seed: int) -> np.ndarray:
    matrix = zeros(rows, columns)
    matrix[:rows, :columns] = np.random.default_rng(seed).standard_normal((rows, columns))
    return matrix


SIZES = st.sampled_from([1, 2, 3, FEW, ROWS - 1, ROWS, ROWS + 1, LANES, LANES + 1, VECTORS * LANES, 33, 50, 131])


@settings(deadline=None, max_examples=60)
@given(rows=SIZES, columns=SIZES, depth=SIZES, transposed=st.booleans(), adds=st.booleans())
def test_products_of_any_size(rows: int, columns: int, depth: int, transposed: bool, adds: bool) -> None:
    left = filled(depth, rows, 0).T if transposed else filled(rows, depth, 0)
    right, out = filled(depth, columns, 1), filled(rows, columns, 2)
    before = out.astype(np.float64)
    multiply(out, left, right, rows, columns, depth, adds)
    exact = left[:rows, :depth].astype(np.float64) @ right[:depth, :columns] + adds * before[:rows, :columns]
    np.testing.assert_allclose(out[:rows, :columns], exact, rtol=0, atol=1e-5 * depth**0.5)
    beyond = -(-rows // FEW) * FEW, -(-columns // (VECTORS * LANES)) * VECTORS * LANES
    assert not out[beyond[0] :].any()
    assert not out[:, beyond[1] :].any()


@pytest.mark.parametrize("adds", [True, False])
def test_a_product_of_no_terms(adds: bool) -> None:
    out = filled(3, 5, 2)
    before = out.copy()
    multiply(out, zeros(3, 1), zeros(1, 5), 3, 5, 0, adds)
    np.testing.assert_array_equal(out[:3, :5], before[:3, :5] if adds else 0)


def test_a_product_written_by_hand() -> None:
    left, right, out = zeros(2, 2), zeros(2, 3), zeros(2, 3)
    left[:2, :2] = [[1, 2], [3, 4]]
    right[:2, :3] = [[5, 6, 7], [8, 9, 10]]
    multiply(out, left, right, 2, 3, 2, False)
    assert out[:2, :3].tolist() == [[21, 24, 27], [47, 54, 61]]
    multiply(out, left.T, right, 2, 3, 2, True)
    assert out[:2, :3].tolist() == [[50, 57, 64], [89, 102, 115]]


def test_the_place_of_a_tile_changes_no_bit() -> None:
    """Rows of whole tiles and of the rest, wide and narrow columns, have the same sums."""
    rows, depth = 2 * ROWS + 1, 37
    left, right = filled(rows, depth, 0), filled(depth, 3 * LANES, 1)
    left[:rows] = left[0]
    right[:depth, : 3 * LANES] = right[:depth, :1]
    out = zeros(rows, 3 * LANES)
    multiply(out, left, right, rows, 3 * LANES, depth, False)
    assert len(np.unique(out[:rows, : 3 * LANES])) == 1


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (LANES, LANES), (17, 40), (130, 3)])
def test_transposes(rows: int, columns: int) -> None:
    matrix, out = filled(rows, columns, 0), zeros(columns, rows)
    turn(out, matrix, rows, columns)
    np.testing.assert_array_equal(out[:columns, :rows], matrix[:rows, :columns].T)
    assert np.count_nonzero(out) == np.count_nonzero(matrix)


def test_rows_lie_apart_in_the_cache() -> None:
    for columns in (1, 32, 64, 100, 256, 1024):
        assert zeros(5, columns).strides[0] // 64 % 2 == 1
