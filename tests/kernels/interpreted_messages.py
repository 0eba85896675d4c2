"""The GPU passes over edges, run by Triton's interpreter: called by ``test_message_passing_triton`` in a fresh process.

Rows are cut after four edges here, so that small graphs have hubs of several pieces.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import distkg.kernels.message_passing.edges
from distkg.kernels.message_passing import incidence
from distkg.kernels.message_passing import moments as message_moments
from distkg.kernels.message_passing import moments_triton as message_moments_triton
from distkg.kernels.message_passing import sums as message_passing
from distkg.kernels.message_passing import sums_triton as message_passing_triton
from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.messages import REFERENCES, Message
from distkg.kernels.message_passing.moments import propagate_moments, reference_moments
from distkg.kernels.message_passing.sums import propagate, reference_propagate

distkg.kernels.message_passing.edges.PIECE = 4
message_moments._passes_for = lambda *_: message_moments_triton  # type: ignore[assignment,return-value]
for module in (message_passing, incidence):
    module.passes_for = lambda *_: message_passing_triton  # type: ignore[assignment,return-value]
incidence.on_cpu = lambda *_: False  # type: ignore[assignment]

Sizes = tuple[int, int, int, int]


def some_edges(nodes: int, kinds: int, count: int, generator: torch.Generator) -> Edges:
    """A third of them gathered by node 0; parallel ones among them."""
    dst, kind, src = (torch.randint(most, (count,), generator=generator) for most in (nodes, kinds, nodes))
    dst[: count // 3] = 0
    return Edges.of(dst, kind, src, nodes, kinds)


def numbers(count: int, generator: torch.Generator) -> Tensor:
    weight = torch.rand(count, generator=generator) + 0.5
    weight[::3] = 0.0
    return weight


def meetings_written_by_hand() -> None:
    # As in test_incidence; entity 0 has seven more relations, so that its row is cut.
    relation = torch.tensor([0, 1, 3, 4, 5, 6, 7, 8, 9, 1, 2], dtype=torch.int32)
    pairs = incidence.Incidence(10, torch.tensor([0, 9, 9, 11]), relation)
    states = torch.tensor([1.0, 10.0, 100.0] + 7 * [0.0]).view(1, 10, 1).requires_grad_()
    factors = torch.tensor([2.0, 7.0, 3.0]).view(1, 3, 1).requires_grad_()
    gathered = incidence.propagate_meetings(states, factors, pairs, with_itself=False)
    assert gathered.flatten().tolist() == [20.0, 302.0, 30.0] + 7 * [22.0]
    gathered[0, 1].sum().backward()
    assert states.grad is not None
    assert factors.grad is not None
    assert states.grad.flatten().tolist() == [2.0, 0.0, 3.0] + 7 * [2.0]
    assert factors.grad.flatten().tolist() == [1.0, 0.0, 100.0]


def written_by_hand() -> None:
    # Node 0 gathers from 1 by kind 0 and from 2 by kind 1; node 2 from itself by kind 1; node 1 from nobody.
    edges = Edges.of(torch.tensor([2, 0, 0]), torch.tensor([1, 1, 0]), torch.tensor([2, 2, 1]), 3, 2)
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    relations = torch.tensor([[[10.0, 1.0], [0.0, -1.0]]])
    weight = torch.tensor([1.0, 2.0, 1.0])
    expected: dict[Message, list[list[float]]] = {
        "distmult": [[30.0, 4 - 2 * 6], [0.0, 0.0], [0.0, -6.0]],
        "transe": [[13 + 2 * 5.0, 5 + 2 * 5.0], [0.0, 0.0], [5.0, 5.0]],
        "rotate": [[38.0, 33.0], [0.0, 0.0], [6.0, -5.0]],  # (3 + 4i)(10 + i) + 2 (5 + 6i)(-i), and (5 + 6i)(-i)
    }
    for message, rows in expected.items():
        assert propagate(states, relations, edges, weight, message).tolist() == [rows]
    moments = propagate_moments(states, relations, edges, weight)
    by_hand = [[30.0, -8.0], [900.0, 16 + 144.0], [30.0, 4.0], [0.0, -12.0]]
    assert [part[0, 0].tolist() for part in moments] == by_hand


def many_edges() -> None:
    """Hubs of many pieces among sources, destinations and kinds; vectors in several blocks; no edges at all."""
    for sizes, width in (((4, 2, 200, 2), 6), ((3, 2, 12, 1), 150), ((9, 3, 0, 2), 4)):
        compare("distmult", sizes, width, shared=True, seed=0)
        compare_moments("distmult", sizes, width, shared=True, seed=0)


def widths(*widths: int) -> None:
    """Vectors of one block and of many."""
    for width in widths:
        compare("rotate", (2, 1, 2, 1), width, shared=False, seed=width)
        compare_moments("rotate", (2, 1, 2, 1), width, shared=False, seed=width)


def random_graphs(examples: int) -> None:
    graphs = given(
        message=st.sampled_from(list(REFERENCES)),
        sizes=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(0, 25), st.integers(1, 2)),
        width=st.sampled_from([2, 6, 20]),
        shared=st.booleans(),
        seed=st.integers(0, 1000),
    )
    for check in (compare, compare_moments):
        settings(max_examples=examples, deadline=None)(graphs(check))()


def compare(message: Message, sizes: Sizes, width: int, shared: bool, seed: int) -> None:
    (nodes, kinds, count, batch), generator = sizes, torch.Generator().manual_seed(seed)
    edges = some_edges(nodes, kinds, count, generator)
    shapes = (batch, nodes, width), (1 if shared else batch, kinds, width)
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    weight = numbers(count, generator).requires_grad_()
    weigh = torch.randn(batch, nodes, width, generator=generator)
    results = []
    for form in (propagate, propagate, reference_propagate):
        out = form(*leaves, edges, weight, message)
        gradients = torch.autograd.grad((out * weigh).sum(), [*leaves, weight], materialize_grads=True)
        results.append([out, *gradients])
    assert_all_right(*results)


def compare_moments(message: Message, sizes: Sizes, width: int, shared: bool, seed: int) -> None:
    """All four moments, and gradients through some of them."""
    (nodes, kinds, count, batch), generator = sizes, torch.Generator().manual_seed(seed)
    edges, weight = some_edges(nodes, kinds, count, generator), numbers(count, generator)
    shapes = (batch, nodes, width), (1 if shared else batch, kinds, width)
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    weigh = torch.randn(4, batch, nodes, width, generator=generator)
    used = [part for part in range(4) if count % (part + 2)] or [0]
    results = []
    for form in (propagate_moments, propagate_moments, reference_moments):
        moments = form(*leaves, edges, weight, message)
        total = torch.stack([(moments[part] * weigh[part]).sum() for part in used]).sum()
        results.append([*moments, *torch.autograd.grad(total, leaves, materialize_grads=True)])
    assert_all_right(*results)


def assert_all_right(found: list[Tensor], again: list[Tensor], expected: list[Tensor]) -> None:
    for ours, same, plain in zip(found, again, expected, strict=True):
        assert torch.equal(ours, same), "the same inputs give the same bits"
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def what_is_hidden_or_broken() -> None:
    # By hand: the edge of weight 0 would bring NaN and infinity.
    edges = Edges.of(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([1, 2]), 3, 2)
    states = torch.tensor([[[1.0], [3.0], [torch.nan]]], requires_grad=True)
    relations = torch.tensor([[[2.0], [torch.inf]]], requires_grad=True)
    weight = torch.tensor([1.0, 0.0])
    found = propagate(states, relations, edges, weight)
    to_states, to_relations = torch.autograd.grad(found.sum(), [states, relations])
    assert found.tolist() == [[[6.0], [0.0], [0.0]]]
    assert to_states.tolist() == [[[0.0], [2.0], [0.0]]]
    assert to_relations.tolist() == [[[3.0], [0.0]]]
    assert [part[0].tolist() for part in propagate_moments(states, relations, edges, weight)] == [
        [[6.0], [0.0], [0.0]],
        [[36.0], [0.0], [0.0]],
        [[6.0], [0.0], [0.0]],
        [[6.0], [0.0], [0.0]],
    ]
    broken = propagate_moments(states, torch.ones(1, 2, 1), edges)
    assert all(part[0, 0].isnan() for part in broken)


def the_first_of_equal_ones() -> None:
    """Over pieces and within one: node 0 hears the same from 1 … 9, and more from 4 on."""
    edges = Edges.of(torch.zeros(9, dtype=torch.int64), torch.zeros(9, dtype=torch.int64), torch.arange(1, 10), 10, 1)
    states = torch.tensor([0.0, 1, 1, 1, 2, 2, 2, 2, 2, 2]).reshape(1, 10, 1).requires_grad_()
    moments = propagate_moments(states, torch.ones(1, 1, 1), edges)
    for part, first in ((moments.largest, 4), (moments.smallest, 1)):
        (gradient,) = torch.autograd.grad(part.sum(), states, retain_graph=True)
        assert gradient.flatten().nonzero().flatten().tolist() == [first]


def half_precision() -> None:
    """Sums are float32: of 300 ones in bfloat16 each is counted."""
    edges = Edges.of(torch.zeros(300, dtype=torch.int64), torch.arange(300) % 2, torch.arange(300) % 3, 3, 2)
    states = torch.ones(1, 3, 2, dtype=torch.bfloat16, requires_grad=True)
    relations = torch.ones(1, 2, 2, requires_grad=True)
    found = propagate(states, relations, edges)
    assert found.dtype == torch.bfloat16
    assert found[0].tolist() == [[300.0, 300.0], [0.0, 0.0], [0.0, 0.0]]
    to_states, to_relations = torch.autograd.grad(found.sum(), [states, relations])
    assert to_states.dtype == torch.bfloat16
    assert to_states[0].tolist() == [[100.0, 100.0]] * 3
    assert to_relations.dtype == torch.float32
    assert to_relations[0].tolist() == [[150.0, 150.0]] * 2
    assert propagate_moments(states, relations, edges).squares[0, 0].tolist() == [300.0, 300.0]
