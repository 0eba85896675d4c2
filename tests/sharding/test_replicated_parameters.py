"""Replicated parameters move as torch's own optimizers move them."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from distributed import run_ranks
from torch import nn

from distkg.config import OptimizerConfig
from distkg.sharding import replicated_parameters
from distkg.sharding.ranks import Ranks
from distkg.sharding.replicated_parameters import ReplicatedParameters

INPUT = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("name", "reference"),
    [("adam", torch.optim.Adam), ("adagrad", torch.optim.Adagrad), ("rowwise_adagrad", torch.optim.Adagrad)],
)
def test_steps_equal_those_of_torch(name: str, reference: type[torch.optim.Optimizer]) -> None:
    ours, theirs = network(), network()
    dense = ReplicatedParameters(ours, OptimizerConfig(name=name, learning_rate=0.05), Ranks.single())  # type: ignore[arg-type]
    optimizer = reference(theirs.parameters(), lr=0.025)  # type: ignore[call-arg]
    for _ in range(4):
        ours(INPUT).square().sum().backward()
        dense.step(0.5)
        optimizer.zero_grad()
        theirs(INPUT).square().sum().backward()
        optimizer.step()
    for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)


def test_clipping_bounds_the_norm_over_all_parameters() -> None:
    ours, theirs = network(), network()
    config = OptimizerConfig(name="adagrad", learning_rate=0.1, relation_learning_rate=1.0, clip_norm=0.01)
    dense = ReplicatedParameters(ours, config, Ranks.single())
    ours(INPUT).square().sum().backward()
    theirs(INPUT).square().sum().backward()
    nn.utils.clip_grad_norm_(theirs.parameters(), 0.01)
    torch.optim.Adagrad(theirs.parameters(), lr=1.0).step()
    dense.step(1.0)
    for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)


def test_state_carries_over() -> None:
    first = network()
    config = OptimizerConfig(name="adam", learning_rate=0.05)
    dense = ReplicatedParameters(first, config, Ranks.single())
    first(INPUT).sum().backward()
    dense.step(1.0)
    second = copy.deepcopy(first)
    resumed = ReplicatedParameters(second, config, Ranks.single())
    for name, tensor in dense.state().items():
        resumed.state()[name].copy_(tensor)
    for module, parameters in ((first, dense), (second, resumed)):
        module(INPUT).sum().backward()
        parameters.step(1.0)
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


class Relations(nn.Module):
    """A thousand rows of 32 floats, and a network with 33 parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.network = nn.Parameter(torch.randn(1000, 32)), nn.Linear(32, 1)


def steps_with_three_rows(ranks: Ranks, name: str, by_row: tuple[str, ...]) -> tuple[list[int], torch.Tensor]:
    """Bytes of the message about the rows of two steps, then those of each of their sums; and all values after them."""
    module, own = Relations(), torch.tensor([[3, 7], [7, 999]])[ranks.rank]
    config = OptimizerConfig(name=name, learning_rate=0.05, weight_decay=0.1, clip_norm=1.0)  # type: ignore[arg-type]
    dense = ReplicatedParameters(module, config, ranks, by_row=by_row)
    seen = [ranks.traffic.bytes]
    rows_of_steps = dense.used_rows([own, own[:1].repeat(2)])
    seen.append(ranks.traffic.bytes)
    for step, rows in enumerate(rows_of_steps):
        used = own if step == 0 else own[:1]
        if by_row:
            assert rows is not None
            assert rows.tolist() == [[3, 7, 999], [3, 7]][step]
        module.network(module.rows[used]).square().sum().backward()
        dense.reduce(rows).wait()
        seen.append(ranks.traffic.bytes)
        dense.step(1.0)
    values = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    return [after - before for before, after in pairwise(seen)], values


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_only_rows_that_a_step_uses_are_summed(name: str) -> None:
    whole = run_ranks(2, steps_with_three_rows, name, ())
    parts = run_ranks(2, steps_with_three_rows, name, ("rows", "scales"))
    for (whole_bytes, expected), (part_bytes, values) in zip(whole, parts, strict=True):
        # Of two ranks each sends and receives the whole sum: 2 (W - 1) / W = 1 time in each direction.
        assert whole_bytes == [0, 2 * 4 * 32_033, 2 * 4 * 32_033]
        assert part_bytes == [2 * 2 * 1000, 2 * 4 * (3 * 32 + 33), 2 * 4 * (2 * 32 + 33)]
        assert torch.equal(values, expected)
        assert torch.equal(values, parts[0][1])


@pytest.mark.parametrize("size", [1, 2])
def test_small_tables_and_single_ranks_sum_whole(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicated_parameters, "SUMMED_WHOLE", 4 * 32_000 - (size == 1))
    dense = ReplicatedParameters(Relations(), OptimizerConfig(), Ranks(0, size), by_row=("rows",))
    assert dense.used_rows([torch.tensor([3, 7])] * 2) == [None, None]
