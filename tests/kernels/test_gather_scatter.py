"""Rows added and taken by index, against numpy's and torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distkg.kernels import gather_scatter as module
from distkg.kernels.gather_scatter import add_rows, gather_rows, sum_rows, take_rows


def random_rows(seed: int, rows: int, taken: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(rows, width, generator=generator)
    index = torch.randint(rows, (taken,), generator=generator)
    return target, index, torch.randn(taken, width, generator=generator)


@pytest.fixture(params=["compiled", "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on the compiled path and on the plain one."""
    if request.param == "plain":
        monkeypatch.setattr(module, "on_cpu", lambda *tensors: False)
    return str(request.param)


def test_rows_named_twice_receive_both(path: str) -> None:
    target = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    add_rows(target, torch.tensor([2, 0, 2]), torch.tensor([[10.0, 20.0], [0.5, 0.5], [100.0, 200.0]]))
    assert target.tolist() == [[1.5, 2.5], [3.0, 4.0], [115.0, 226.0]]


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 20), taken=st.integers(0, 60), width=st.integers(0, 9))
def test_adding_rows_is_what_numpy_does(seed: int, rows: int, taken: int, width: int) -> None:
    target, index, source = random_rows(seed, rows, taken, width)
    expected = target.double().numpy()
    np.add.at(expected, index.numpy(), source.double().numpy())
    add_rows(target, index, source)
    np.testing.assert_allclose(target.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_adding_into_a_part_of_wider_rows_leaves_the_rest(path: str) -> None:
    wide = torch.zeros(3, 4)
    add_rows(wide[:, 1:3], torch.tensor([0, 0, 2]), torch.ones(3, 4)[:, ::2])
    assert wide.tolist() == [[0.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]


def test_float32_rows_add_into_bfloat16_ones() -> None:
    target = torch.ones(2, 2, dtype=torch.bfloat16)
    add_rows(target, torch.tensor([1, 1]), torch.full((2, 2), 0.5))
    assert target.tolist() == [[1.0, 1.0], [2.0, 2.0]]


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 12), taken=st.integers(0, 30), width=st.integers(1, 9))
def test_taken_rows_and_their_gradient_are_those_of_torch(seed: int, rows: int, taken: int, width: int) -> None:
    values, index, grad = random_rows(seed, rows, taken, width)
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    got, expected = take_rows(ours, index), theirs[index]
    assert torch.equal(got, expected)
    got.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_a_gradient_that_is_one_number_everywhere_reaches_taken_rows(path: str) -> None:
    values = torch.zeros(3, 2, requires_grad=True)
    take_rows(values, torch.tensor([1, 1, 2])).sum().backward()  # the sum's gradient is one stored number, expanded
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0, 0.0], [2.0, 2.0], [1.0, 1.0]]


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 20), taken=st.integers(0, 60), width=st.integers(0, 19))
def test_gathered_rows_are_those_of_the_index(seed: int, rows: int, taken: int, width: int) -> None:
    target, index, room = random_rows(seed, rows, taken, width)
    assert torch.equal(gather_rows(target, index), target[index])
    assert gather_rows(target, index, room) is room
    assert torch.equal(room, target[index])
    assert torch.equal(gather_rows(target.bfloat16(), index), target.bfloat16()[index])


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 20), taken=st.integers(0, 60), width=st.integers(0, 19))
def test_rows_summed_by_index_are_those_added_to_zeros(seed: int, rows: int, taken: int, width: int) -> None:
    expected, parts = torch.zeros(rows, width), []
    for part in range(3):
        _, index, source = random_rows(seed + part, rows, taken, width)
        expected.index_add_(0, index, source)
        parts.append((index, source))
    torch.testing.assert_close(sum_rows(parts, rows), expected)


@pytest.mark.parametrize("row", [-1, 3, 1 << 40])
def test_a_row_that_does_not_exist_is_an_error(row: int, path: str) -> None:
    with pytest.raises(IndexError):
        gather_rows(torch.zeros(3, 20), torch.tensor([0, 2, row]))


def test_rows_summed_by_hand(path: str) -> None:
    first, second = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 20.0]])
    parts = [(torch.tensor([2, 0]), first), (torch.tensor([2]), second)]
    assert sum_rows(parts, 4).tolist() == [[3.0, 4.0], [0.0, 0.0], [11.0, 22.0], [0.0, 0.0]]


def test_rows_that_do_not_follow_each_other_in_memory(path: str) -> None:
    """Column slices, transposed and repeated rows, as gradients may be."""
    index = torch.tensor([2, 0, 2])
    wide = torch.arange(40.0).view(4, 10)
    for target in (wide.clone()[:, 1:9], wide.T.clone().T[:, :8]):
        for source in (
            torch.ones(1, 1).expand(3, 8),
            torch.arange(24.0).view(8, 3).T,
            torch.arange(48.0).view(3, 16)[:, ::2],
        ):
            expected, room = (
                target.clone().index_add_(0, index, source),
                target.clone(memory_format=torch.preserve_format),
            )
            add_rows(room, index, source)
            assert torch.equal(room, expected)
            assert torch.equal(sum_rows([(index, source)], 4), torch.zeros(4, 8).index_add_(0, index, source))
        assert torch.equal(gather_rows(target, index), target[index])
