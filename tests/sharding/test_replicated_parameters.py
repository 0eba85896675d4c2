"""Replicated parameters move as torch's own optimizers move them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from distkg.config import OptimizerConfig
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
