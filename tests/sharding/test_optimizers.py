"""Row-wise optimizers against torch.optim, against numbers written by hand, and compiled against plain."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from distkg.registry import UnknownNameError
from distkg.sharding import optimizers as module
from distkg.sharding.optimizers import OPTIMIZERS, RowOptimizer

CPU = torch.device("cpu")


@pytest.fixture(params=["compiled", "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on the compiled path and on the plain one."""
    if request.param == "plain":
        monkeypatch.setattr(module, "on_cpu", lambda *tensors: False)
    return str(request.param)


def gradients(steps: int, rows: int, width: int, seed: int = 0) -> list[Tensor]:
    """Of very different sizes by row, with zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.logspace(-6, 3, rows)[:, None]
    drawn = [torch.randn(rows, width, generator=generator) * size for _ in range(steps)]
    for step in drawn:
        step[0, 0] = 0.0
    return drawn


def dense_steps(optimizer: RowOptimizer, start: Tensor, grads: list[Tensor], rate: float) -> Tensor:
    table, everyone = start.clone(), torch.arange(len(start))
    for grad in grads:
        change = grad.clone()
        optimizer.step(everyone, change, rate)
        table += change
    return table


@pytest.mark.parametrize(
    ("name", "peer"), [("adagrad", torch.optim.Adagrad), ("adam", torch.optim.Adam)], ids=["adagrad", "adam"]
)
def test_dense_steps_are_those_of_torch(name: str, peer: Callable[..., torch.optim.Optimizer], path: str) -> None:
    start, grads = torch.randn(6, 5, generator=torch.Generator().manual_seed(9)), gradients(12, 6, 5)
    parameter = torch.nn.Parameter(start.clone())
    theirs = peer([parameter], lr=0.03)
    for grad in grads:
        parameter.grad = grad.clone()
        theirs.step()
    ours = dense_steps(OPTIMIZERS[name](6, 5, CPU), start, grads, 0.03)
    torch.testing.assert_close(ours, parameter.detach(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad", "adam"])
def test_each_row_goes_its_own_way(name: str, path: str) -> None:
    """Rows that are seen at some steps only move as if the table held nothing else."""
    grads, seen = gradients(9, 5, 4), [[0, 3], [1], [], [3, 4], [0, 1, 2, 3], [4], [3], [2, 3], [1]]
    together, table = OPTIMIZERS[name](5, 4, CPU), torch.zeros(5, 4)
    for rows, grad in zip(seen, grads, strict=True):
        ids = torch.tensor(rows, dtype=torch.int64)
        change = grad[ids]
        together.step(ids, change, 0.1)
        table[ids] += change
    for row in range(5):
        mine = [grad[row : row + 1] for rows, grad in zip(seen, grads, strict=True) if row in rows]
        alone = dense_steps(OPTIMIZERS[name](1, 4, CPU), torch.zeros(1, 4), mine, 0.1)
        torch.testing.assert_close(table[row : row + 1], alone)


def test_rowwise_adagrad_by_hand(path: str) -> None:
    optimizer = OPTIMIZERS["rowwise_adagrad"](3, 2, CPU)
    first = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    optimizer.step(torch.tensor([2, 0]), first, 0.1)
    # Row 2: mean square 12.5. Row 0: mean square 2.
    assert optimizer.state["sum"].flatten().tolist() == [2.0, 0.0, 12.5]
    root = math.sqrt(12.5)
    assert first.flatten().tolist() == pytest.approx([-0.3 / root, -0.4 / root, 0.0, -0.2 / math.sqrt(2)])
    second = torch.tensor([[1.0, -1.0]])
    optimizer.step(torch.tensor([2]), second, 0.2)  # 12.5 + 1
    assert optimizer.state["sum"].flatten().tolist() == [2.0, 0.0, 13.5]
    assert second.flatten().tolist() == pytest.approx([-0.2 / math.sqrt(13.5), 0.2 / math.sqrt(13.5)])


def test_adagrad_by_hand(path: str) -> None:
    optimizer = OPTIMIZERS["adagrad"](1, 2, CPU)
    for grad, expected in [([3.0, 0.0], [-0.1, 0.0]), ([4.0, 1.0], [-0.08, -0.1])]:  # 4 / sqrt(9 + 16)
        change = torch.tensor([grad])
        optimizer.step(torch.tensor([0]), change, 0.1)
        assert change.flatten().tolist() == pytest.approx(expected)


def test_a_row_first_seen_late_takes_adams_full_first_step(path: str) -> None:
    optimizer = OPTIMIZERS["adam"](2, 1, CPU)
    for _ in range(50):
        optimizer.step(torch.tensor([0]), torch.tensor([[1.0]]), 0.1)
    late = torch.tensor([[-5.0]])
    optimizer.step(torch.tensor([1]), late, 0.1)
    assert late.item() == pytest.approx(0.1, rel=1e-5)
    assert optimizer.state["steps"].flatten().tolist() == [50.0, 1.0]


@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad", "adam"])
def test_the_compiled_path_and_the_plain_one_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start, grads = torch.zeros(6, 7), gradients(40, 6, 7, seed=5)
    compiled = OPTIMIZERS[name](6, 7, CPU)
    ours = dense_steps(compiled, start, grads, 0.05)
    monkeypatch.setattr(module, "on_cpu", lambda *tensors: False)
    plain = OPTIMIZERS[name](6, 7, CPU)
    torch.testing.assert_close(ours, dense_steps(plain, start, grads, 0.05), rtol=5e-5, atol=5e-6)
    for key, values in plain.state.items():
        torch.testing.assert_close(compiled.state[key], values, rtol=5e-5, atol=1e-12)


@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad", "adam"])
def test_a_gradient_of_zero_changes_nothing_and_nan_shows(name: str, path: str) -> None:
    optimizer = OPTIMIZERS[name](2, 3, CPU)
    grad = torch.zeros(2, 3)
    grad[1, 1] = float("nan")
    optimizer.step(torch.tensor([0, 1]), grad, 0.1)
    assert not grad[0].any()
    assert grad[1, 1].isnan()


@pytest.mark.parametrize(
    ("name", "columns"),
    [("rowwise_adagrad", {"sum": 1}), ("adagrad", {"sum": 16}), ("adam", {"mean": 16, "square": 16, "steps": 1})],
)
def test_state_is_as_wide_as_announced(name: str, columns: dict[str, int]) -> None:
    optimizer = OPTIMIZERS[name](4, 16, CPU)
    assert OPTIMIZERS[name].columns(16) == columns
    assert {key: tuple(values.shape) for key, values in optimizer.state.items()} == {
        key: (4, width) for key, width in columns.items()
    }


def test_an_unknown_optimizer_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="adagrad, adam, rowwise_adagrad"):
        OPTIMIZERS["sgd"]
