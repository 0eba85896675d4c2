"""Moments of gathered messages against numbers written by hand and the plain form, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.kernels.message_moments import propagate_moments, reference_moments
from distkg.kernels.message_passing import REFERENCES, Edges, Message


def test_numbers_written_by_hand() -> None:
    # Node 0 gathers 3·10 and, twice as heavy, 5·(-1); from node 1 comes nothing, as its weight is 0.
    edges = Edges.of(torch.tensor([0, 0, 0]), torch.tensor([0, 1, 1]), torch.tensor([1, 1, 2]), 3, 2)
    states, relations = torch.tensor([[[1.0], [3.0], [5.0]]]), torch.tensor([[[10.0], [-1.0]]])
    found = propagate_moments(states, relations, edges, torch.tensor([1.0, 0.0, 2.0]))
    assert [part[0, 0].item() for part in found] == [20.0, 1000.0, 30.0, -10.0]
    assert all(part[0, 1:].abs().sum() == 0 for part in found), "nobody gave them anything"


@pytest.mark.parametrize("message", list(REFERENCES))
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 8), st.integers(1, 4), st.integers(0, 30), st.integers(1, 3)),
    width=st.sampled_from([2, 6, 16]),
    shared=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_they_are_the_plain_form_forward_and_backward(
    message: Message, sizes: tuple[int, int, int, int], width: int, shared: bool, seed: int
) -> None:
    nodes, kinds, count, batch = sizes
    generator = torch.Generator().manual_seed(seed)
    sides = (torch.randint(most, (count,), generator=generator) for most in (nodes, kinds, nodes))
    edges = Edges.of(*sides, nodes, kinds)
    # Parallel edges give the same message twice, and a gradient to either is right.
    weight = torch.rand(count, generator=generator) + 0.5
    weight[::3] = 0.0
    shapes = (batch, nodes, width), (1 if shared else batch, kinds, width)
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    weigh = torch.randn(4, batch, nodes, width, generator=generator)
    results = []
    for form in (propagate_moments, reference_moments):
        moments = form(*leaves, edges, weight, message)
        total = sum((part * share).sum() for part, share in zip(moments, weigh, strict=True))
        assert isinstance(total, torch.Tensor)
        results.append((moments, torch.autograd.grad(total, leaves, materialize_grads=True)))
    (found, gradients), (expected, plain) = results
    for ours, theirs in zip((*found, *gradients), (*expected, *plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
