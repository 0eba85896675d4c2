"""Products against torch.mm in float64, on both of the libraries that compute them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distkg.kernels import cpu
from distkg.kernels.products import grouped_product, half_where_fast, product, product_over_rows, products_in
from distkg.kernels.threads import computing_threads

SHAPES = [(1, 1, 1), (3, 5, 2), (1, 2000, 40), (41, 40, 40), (257, 129, 33), (100, 1, 1000), (64, 1024, 200)]


def operands(m: int, n: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(m * n + k)
    left, right = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator)
    return left.to(dtype), right.to(dtype)


def assert_product(left: Tensor, right: Tensor) -> None:
    got, expected = product(left, right), left.double() @ right.double().T
    assert got.dtype == left.dtype
    assert got.shape == expected.shape
    unit = 2**-8 if left.dtype == torch.bfloat16 else 1e-5
    room = unit * (expected.abs() + left.double().norm(dim=1)[:, None] * right.double().norm(dim=1))
    assert ((got.double() - expected).abs() <= room).all()


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_many_shapes(
    shape: tuple[int, int, int], dtype: torch.dtype, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = cpu.has_onednn()
    monkeypatch.setattr(cpu, "has_onednn", lambda: onednn and present)
    monkeypatch.setattr(cpu, "multiplies_fastest_with_onednn", lambda: onednn and present)
    assert_product(*operands(*shape, dtype))


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_products_without_instructions_for_them_round_products_of_float32(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "has_fast_bfloat16", lambda: False)
    left, right = operands(*shape, torch.bfloat16)
    assert_product(left, right)
    assert torch.equal(product(left, right), product(left.float(), right.float()).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operands_that_lie_otherwise_in_memory(dtype: torch.dtype) -> None:
    left, right = operands(120, 150, 96, dtype)
    assert_product(left.T.contiguous().T, right)
    assert_product(left, right.T.contiguous().T)
    assert_product(left.T.contiguous().T, right.T.contiguous().T)
    assert_product(left[::2], right[1:140])
    assert_product(left[:, ::2], right[:, 48:])
    assert_product(left[:1].expand(120, -1), right)


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (4, 3, 0)])
def test_empty_operands(shape: tuple[int, int, int]) -> None:
    assert_product(*operands(*shape))


@settings(max_examples=40)
@given(m=st.integers(1, 90), n=st.integers(1, 90), k=st.integers(1, 90))
def test_products_of_any_shape(m: int, n: int, k: int) -> None:
    assert_product(*operands(m, n, k))


def test_a_product_written_by_hand() -> None:
    left, right = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0], [0.5, 0.0]])
    assert product(left, right).tolist() == [[11.0, 17.0, 0.5], [-4.0, -6.0, 0.0]]


@pytest.mark.parametrize("onednn", [False, True])
def test_large_products_leave_to_onednn_and_small_ones_stay(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "multiplies_fastest_with_onednn", lambda: onednn)
    monkeypatch.setattr(cpu, "linear", lambda left, right: torch.zeros(len(left), len(right)))
    ones = torch.ones(64, 64)
    large = 0 if onednn else 64
    assert (product(ones, ones) == large).all()
    assert (product(ones, torch.ones(65, 64)) == large).all()
    assert (product(ones[:8], ones[:8]) == 64).all()


def test_products_in_bfloat16_round_the_factors_and_give_float32() -> None:
    left, right = operands(120, 150, 96)
    with products_in(torch.bfloat16):
        got = product(left, right)
    rounded = left.bfloat16().double(), right.bfloat16().double()
    expected = rounded[0] @ rounded[1].T
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=2**-8)
    # 1 + 1/512 lies between two numbers of bfloat16; float32 holds its square, bfloat16 makes 1 of it.
    between = torch.tensor([[1 + 1 / 512]])
    with products_in(torch.bfloat16):
        assert product(between, between).item() == 1.0
    assert product(between, between).item() == (1 + 1 / 512) ** 2


def test_the_precision_of_products_is_set_back_after_an_error() -> None:
    between = torch.tensor([[1 + 1 / 512]])
    with pytest.raises(RuntimeError), products_in(torch.bfloat16):
        product(between, torch.ones(1, 3))
    assert product(between, torch.ones(1, 1)).item() == 1 + 1 / 512


@pytest.mark.parametrize("can", [False, True])
def test_layers_multiply_in_bfloat16_where_the_machine_can(can: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_fast_bfloat16", lambda: can)
    layer, between = torch.nn.Linear(1, 1, bias=False), torch.tensor([[1 + 1 / 512]])
    torch.nn.init.constant_(layer.weight, 1.0)
    with half_where_fast("cpu"):
        found = layer(between)
    assert found.dtype == (torch.bfloat16 if can else torch.float32)
    assert found.item() == (1.0 if can else 1 + 1 / 512)
    assert layer(between).dtype == torch.float32


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize(
    ("rows", "left", "right"),
    [(1, 1, 1), (0, 3, 2), (512, 5, 4), (4096, 64, 96), (4096, 8, 64), (3000, 64, 8), (7, 3, 33)],
)
def test_products_over_rows(rows: int, left: int, right: int, onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    present = cpu.has_onednn()
    monkeypatch.setattr(cpu, "has_onednn", lambda: onednn and present)
    one, other = operands(left, right, rows)
    for first, second in ((one.T, other.T), (one.T.contiguous(), other.T.contiguous()), (one.T, wider(other.T))):
        got, expected = product_over_rows(first, second), one.double() @ other.double().T
        assert got.shape == (left, right)
        room = 1e-5 * (expected.abs() + one.double().norm(dim=1)[:, None] * other.double().norm(dim=1))
        assert ((got.double() - expected).abs() <= room).all()


@pytest.mark.parametrize(("left", "right"), [(16, 16), (64, 8), (8, 31), (64, 64)])
def test_threads_change_no_bit_of_products_over_rows(left: int, right: int) -> None:
    one, other = operands(left, right, 5000)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append(product_over_rows(one.T, other.T))
    torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results)


def wider(rows: Tensor) -> Tensor:
    """The same numbers as columns of a wider tensor."""
    return torch.cat([rows, rows], dim=1)[:, : rows.shape[1]]


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize(
    "shape", [(51, 5118, 32), (5118, 51, 32), (256, 128, 256), (7, 5000, 16), (11, 2368, 430), (32, 4096, 40)]
)
def test_the_number_of_threads_changes_no_bit(
    shape: tuple[int, int, int], onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "multiplies_fastest_with_onednn", lambda: onednn and cpu.has_onednn())
    left, right = operands(*shape)
    with computing_threads(1):
        one = product(left, right)
    with computing_threads(2):
        assert torch.equal(product(left, right), one)


def test_products_of_groups_by_hand() -> None:
    """1 + 1/256 is not a number of bfloat16, and rounds to 1."""
    left = torch.tensor([[[1 + 1 / 256, 2.0]], [[3.0, 1.0]]], requires_grad=True)
    right = torch.tensor([[[1.0, 1.0], [0.0, 4.0]], [[2.0, 0.0], [1.0, 1.0]]])
    exact = grouped_product(left, right)
    assert exact.tolist() == [[[3 + 1 / 256, 8.0]], [[6.0, 4.0]]]
    with products_in(torch.bfloat16):
        rounded = grouped_product(left, right)
    assert rounded.dtype == torch.float32
    assert rounded.tolist() == [[[3.0, 8.0]], [[6.0, 4.0]]]
    (gradient,) = torch.autograd.grad(rounded.sum(), left)
    assert gradient.tolist() == [[[1.0, 5.0]], [[3.0, 1.0]]]
