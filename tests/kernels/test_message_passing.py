"""Message passing against sums written by hand, the plain form, and its gradients in float64 differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.messages import REFERENCES, Message
from distkg.kernels.message_passing.sums import propagate, reference_propagate

MESSAGES = pytest.mark.parametrize("message", list(REFERENCES))


def some_edges(nodes: int, kinds: int, count: int, seed: int) -> Edges:
    generator = torch.Generator().manual_seed(seed)
    sides = (torch.randint(most, (count,), generator=generator) for most in (nodes, kinds, nodes))
    return Edges.of(*sides, nodes, kinds)


def test_numbers_written_by_hand() -> None:
    # Node 0 gathers from 1 by kind 0 and from 2 by kind 1; node 2 from itself by kind 1; node 1 from nobody.
    edges = Edges.of(torch.tensor([2, 0, 0]), torch.tensor([1, 1, 0]), torch.tensor([2, 2, 1]), 3, 2)
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    relations = torch.tensor([[[10.0, 1.0], [0.0, -1.0]]])
    weight = torch.tensor([1.0, 2.0, 1.0])  # in the order (dst, kind, src)
    expected = {
        "distmult": [[30.0, 4 - 2 * 6], [0.0, 0.0], [0.0, -6.0]],
        "transe": [[13 + 2 * 5.0, 5 + 2 * 5.0], [0.0, 0.0], [5.0, 5.0]],
        # (3 + 4i)(10 + i) + 2 (5 + 6i)(-i) = 26 + 43i + 12 - 10i
        "rotate": [[38.0, 33.0], [0.0, 0.0], [6.0, -5.0]],
    }
    for message, rows in expected.items():
        assert propagate(states, relations, edges, weight, message).tolist() == [rows]  # type: ignore[arg-type]


@MESSAGES
@settings(max_examples=30, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(0, 40), st.integers(1, 3)),
    width=st.sampled_from([2, 6, 16, 20]),
    shared=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_it_is_the_plain_form_forward_and_backward(
    message: Message, sizes: tuple[int, int, int, int], width: int, shared: bool, seed: int
) -> None:
    nodes, kinds, count, batch = sizes
    edges, generator = some_edges(nodes, kinds, count, seed), torch.Generator().manual_seed(seed)
    shapes = (batch, nodes, width), (1 if shared else batch, kinds, width), (count,)
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    with torch.no_grad():
        leaves[2][::3] = 0.0
    weigh = torch.randn(batch, nodes, width, generator=generator)
    found, expected = (
        torch.autograd.grad(
            (form(*leaves[:2], edges, leaves[2], message) * weigh).sum(), leaves, materialize_grads=True
        )
        for form in (propagate, reference_propagate)
    )
    with torch.no_grad():
        torch.testing.assert_close(
            propagate(*leaves[:2], edges, leaves[2], message),
            reference_propagate(*leaves[:2], edges, leaves[2], message),
            rtol=1e-4,
            atol=1e-4,
        )
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@MESSAGES
def test_the_plain_form_has_right_gradients(message: Message) -> None:
    edges, generator = some_edges(4, 2, 9, 3), torch.Generator().manual_seed(0)
    shapes = (2, 4, 6), (2, 2, 6), (9,)
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    torch.autograd.gradcheck(lambda x, w, weight: reference_propagate(x, w, edges, weight, message), leaves)


def test_an_edge_of_weight_0_is_as_if_it_were_not_there() -> None:
    edges, generator = some_edges(6, 3, 20, 1), torch.Generator().manual_seed(0)
    states, relations = torch.randn(2, 6, 8, generator=generator), torch.randn(2, 3, 8, generator=generator)
    weight = torch.ones(20)
    weight[5:9] = 0
    kept = torch.cat([torch.arange(5), torch.arange(9, 20)])
    rest = Edges.of(edges.dst[kept], edges.relation[kept], edges.src[kept], 6, 3)
    assert torch.equal(propagate(states, relations, edges, weight), propagate(states, relations, rest))


def test_an_edge_of_weight_0_is_not_read() -> None:
    edges = Edges.of(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([1, 2]), 3, 2)
    states = torch.tensor([[[1.0], [3.0], [torch.nan]]], requires_grad=True)
    relations = torch.tensor([[[2.0], [torch.inf]]], requires_grad=True)
    found = propagate(states, relations, edges, torch.tensor([1.0, 0.0]))
    found.sum().backward()
    assert found.tolist() == [[[6.0], [0.0], [0.0]]]
    assert states.grad is not None
    assert states.grad.tolist() == [[[0.0], [2.0], [0.0]]]
    assert relations.grad is not None
    assert relations.grad.tolist() == [[[3.0], [0.0]]]


@MESSAGES
@pytest.mark.parametrize("batch", [1, 5])
def test_results_are_the_same_bits_again_and_with_any_number_of_threads(message: Message, batch: int) -> None:
    edges, generator = some_edges(50, 4, 600, 2), torch.Generator().manual_seed(0)
    shapes = (batch, 50, 16), (1, 4, 16), (600,)
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            out = propagate(*leaves[:2], edges, leaves[2], message)
            found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for again in found[1:] for one, other in zip(found[0], again, strict=True))


def test_other_dtypes_get_the_plain_form() -> None:
    edges, generator = some_edges(6, 3, 20, 1), torch.Generator().manual_seed(0)
    states, relations = (torch.randn(2, size, 8, generator=generator, dtype=torch.float64) for size in (6, 3))
    weight = torch.rand(20, generator=generator, dtype=torch.float64)
    found = propagate(states, relations, edges, weight)
    assert torch.equal(found, reference_propagate(states, relations, edges, weight, "distmult"))
    assert found.dtype == torch.float64
    halves = propagate(states.bfloat16(), relations.bfloat16(), edges)
    assert halves.dtype == torch.bfloat16
    torch.testing.assert_close(halves.double(), propagate(states, relations, edges), rtol=0.05, atol=0.1)


@MESSAGES
def test_queries_may_share_rows_of_relations(message: Message) -> None:
    edges, generator = some_edges(20, 3, 100, seed=0), torch.Generator().manual_seed(0)
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((5, 20, 20), (2, 3, 20))]
    place, weigh = torch.tensor([1, 0, 1, 1, 0]), torch.randn(5, 20, 20, generator=generator)
    weight = torch.ones(100)

    def of_each(relations: Tensor) -> Tensor:
        return reference_propagate(leaves[0], relations[place], edges, weight, message)

    with torch.no_grad():
        shared = propagate(*leaves, edges, message=message, place=place)
        torch.testing.assert_close(shared, of_each(leaves[1]), rtol=1e-5, atol=1e-5)
    gradients = [
        torch.autograd.grad((out * weigh).sum(), leaves)
        for out in (propagate(*leaves, edges, message=message, place=place), of_each(leaves[1]))
    ]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [8, 16, 24, 32, 56, 64, 72, 120, 134])
def test_every_tile_of_columns_is_summed(width: int) -> None:
    """Four vectors, two, one and a rest, of 8 or 16 numbers."""
    edges, generator = some_edges(6, 2, 30, seed=1), torch.Generator().manual_seed(1)
    states = torch.randint(-9, 10, (1, 6, width), generator=generator).float()
    relations = torch.randint(-9, 10, (1, 2, width), generator=generator).float()
    for message in REFERENCES:  # sums of whole numbers are exact
        expected = reference_propagate(states, relations, edges, torch.ones(30), message)
        assert torch.equal(propagate(states, relations, edges, None, message), expected)
