"""Moments of gathered messages against numbers written by hand and the plain form, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.messages import REFERENCES, Message
from distkg.kernels.message_passing.moments import propagate_moments, reference_moments


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


def test_a_broken_number_shows_in_all_of_them() -> None:
    # Node 0 gathers NaN between two numbers, node 1 a number alone.
    edges = Edges.of(torch.tensor([0, 0, 0, 1]), torch.zeros(4, dtype=torch.int64), torch.tensor([0, 1, 2, 0]), 3, 1)
    states = torch.tensor([[[1.0], [torch.nan], [3.0]]])
    found = propagate_moments(states, torch.ones(1, 1, 1), edges)
    assert all(part[0, 0].isnan() for part in found)
    assert [part[0, 1].item() for part in found] == [1.0, 1.0, 1.0, 1.0]


def test_of_equal_messages_the_first_edge_gets_the_gradient() -> None:
    edges = Edges.of(torch.tensor([0, 0, 0]), torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, 2]), 3, 1)
    states = torch.tensor([[[2.0], [5.0], [5.0]]], requires_grad=True)
    found = propagate_moments(states, torch.ones(1, 1, 1), edges)
    found.largest.sum().backward()
    assert states.grad is not None
    assert states.grad.tolist() == [[[0.0], [1.0], [0.0]]]


def test_results_are_the_same_bits_again_and_with_any_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    edges = Edges.of(*(torch.randint(most, (600,), generator=generator) for most in (50, 4, 50)), 50, 4)
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((5, 50, 16), (1, 4, 16))]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            moments = propagate_moments(*leaves, edges)
            total = sum(part.square().sum() for part in moments)
            assert isinstance(total, torch.Tensor)
            found.append([*moments, *torch.autograd.grad(total, leaves)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for again in found[1:] for one, other in zip(found[0], again, strict=True))
