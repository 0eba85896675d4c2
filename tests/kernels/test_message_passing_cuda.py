"""The GPU passes over edges on a real GPU, against the plain form in float64; skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.messages import REFERENCES, Message
from distkg.kernels.message_passing.moments import propagate_moments, reference_moments
from distkg.kernels.message_passing.sums import propagate, reference_propagate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
THERE = "cuda"
MESSAGES = pytest.mark.parametrize("message", list(REFERENCES))
WIDTHS = pytest.mark.parametrize("width", [6, 64, 200])
SHARED = pytest.mark.parametrize("shared", [False, True])
NODES, KINDS, EDGES, BATCH = 500, 12, 20_000, 3


def problem(width: int, shared: bool) -> tuple[Edges, list[Tensor]]:
    """Node 0 gathers a fifth of the edges, the last ones are alone; a third of the weights is 0. Edges stay on CPU."""
    generator = torch.Generator().manual_seed(width)
    dst, kind, src = (torch.randint(most, (EDGES,), generator=generator) for most in (490, KINDS, 490))
    dst[: EDGES // 5] = 0
    weight = torch.rand(EDGES, generator=generator) + 0.5
    weight[::3] = 0
    shapes = (BATCH, NODES, width), (1 if shared else BATCH, KINDS, width)
    leaves = [torch.randn(shape, generator=generator) for shape in shapes]
    return Edges.of(dst, kind, src, NODES, KINDS), [*leaves, weight]


def near(found: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    """Within a share of the largest number: sums of thousands of float32 terms of either sign."""
    exact = expected.detach().cpu()
    torch.testing.assert_close(found.detach().double().cpu(), exact, rtol=0, atol=share * float(exact.abs().max()))


@MESSAGES
@WIDTHS
@SHARED
def test_sums_and_gradients(message: Message, width: int, shared: bool) -> None:
    edges, leaves = problem(width, shared)
    weigh = torch.randn(BATCH, NODES, width, generator=torch.Generator().manual_seed(0))
    results = []
    for form, dtype in ((propagate, torch.float32), (propagate, torch.float32), (reference_propagate, torch.float64)):
        there = [leaf.to(THERE, dtype).requires_grad_() for leaf in leaves]
        out = form(*there[:2], edges.to(torch.device(THERE)), there[2], message)
        results.append([out, *torch.autograd.grad((out * weigh.to(THERE, dtype)).sum(), there)])
    for found, again, expected in zip(*results, strict=True):
        assert torch.equal(found, again)
        near(found, expected)


@MESSAGES
@WIDTHS
@SHARED
def test_moments_and_gradients(message: Message, width: int, shared: bool) -> None:
    edges, (*leaves, weight) = problem(width, shared)
    weigh = torch.randn(4, BATCH, NODES, width, generator=torch.Generator().manual_seed(0))
    results = []
    forms = (propagate_moments, torch.float32), (propagate_moments, torch.float32), (reference_moments, torch.float64)
    for form, dtype in forms:
        there = [leaf.to(THERE, dtype).requires_grad_() for leaf in leaves]
        moments = form(*there, edges.to(torch.device(THERE)), weight.to(THERE, dtype), message)
        total = (torch.stack(moments) * weigh.to(THERE, dtype)).sum()
        results.append([*moments, *torch.autograd.grad(total, there)])
    for found, again, expected in zip(*results, strict=True):
        assert torch.equal(found, again)
        near(found, expected)


def test_states_of_half_precision() -> None:
    edges, (states, relations, weight) = problem(64, shared=False)
    halves = states.to(THERE, torch.bfloat16), relations.to(THERE, torch.bfloat16)
    found = propagate(*halves, edges, weight)
    assert found.dtype == torch.bfloat16
    exact = (half.double() for half in halves)
    near(found, reference_propagate(*exact, edges.to(torch.device(THERE)), weight.double().to(THERE), "distmult"), 4e-3)
