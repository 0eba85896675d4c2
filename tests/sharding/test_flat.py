"""A network's parameters as one row: they stay its parameters, and move as torch's own Adam moves them."""

from __future__ import annotations

import copy

import torch
from torch import nn

from distkg.sharding.flat import FlatParameters
from distkg.sharding.optimizers import OPTIMIZERS


def test_parameters_are_views_of_the_row_in_order() -> None:
    network = nn.Linear(2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 2.0]]))
        network.bias.copy_(torch.tensor([3.0]))
    flat = FlatParameters(network)
    assert flat.values.tolist() == [[1.0, 2.0, 3.0]]
    flat.values *= 2
    assert network(torch.ones(1, 2)).item() == 12.0
    network(torch.tensor([[5.0, 7.0]])).sum().backward()
    assert flat.gradients.tolist() == [[5.0, 7.0, 1.0]]


def test_steps_are_those_of_torch_and_gradients_start_from_nothing() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    theirs, inputs = copy.deepcopy(ours), torch.randn(5, 3)
    flat, reference = FlatParameters(ours), torch.optim.Adam(theirs.parameters(), lr=0.05)
    optimizer = OPTIMIZERS["adam"](1, flat.values.shape[1], flat.values.device)
    for _ in range(4):
        ours(inputs).square().sum().backward()
        flat.step(optimizer, 0.05)
        reference.zero_grad()
        theirs(inputs).square().sum().backward()
        reference.step()
    for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        # Adam divides by the gradient's own size: where that is near 0, its last digit moves the parameter. Without AVX
        # the two orders of summing differ by 4·10⁻⁶.
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
