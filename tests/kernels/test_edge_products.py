"""Products along edges against numbers written by hand and the plain form."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.kernels.edge_products import edge_products, reference_edge_products
from distkg.kernels.edges import Edges


def test_numbers_written_by_hand() -> None:
    edges = Edges.of(torch.tensor([2, 0, 0]), torch.tensor([1, 1, 0]), torch.tensor([2, 2, 1]), 3, 2)
    left = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    right = torch.tensor([[1.0, 0.0], [0.0, 1.0], [10.0, -1.0]])
    assert edge_products(left, right, edges).tolist() == [2.0, 8.0, 44.0]  # in the order (gatherer, kind, giver)


@settings(max_examples=30, deadline=None)
@given(nodes=st.integers(1, 9), count=st.integers(0, 40), width=st.integers(1, 20), seed=st.integers(0, 1000))
def test_it_is_the_plain_form_forward_and_backward(nodes: int, count: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sides = (torch.randint(most, (count,), generator=generator) for most in (nodes, 3, nodes))
    edges = Edges.of(*sides, nodes, 3)
    leaves = [torch.randn(nodes, width, generator=generator).requires_grad_() for _ in range(2)]
    weigh = torch.randn(count, generator=generator)
    found, expected = (
        [out, *torch.autograd.grad((out * weigh).sum(), leaves)]
        for out in (form(*leaves, edges) for form in (edge_products, reference_edge_products))
    )
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
