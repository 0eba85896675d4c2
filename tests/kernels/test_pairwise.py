"""Compiled comparisons in their three forms beside plain references: rests of tiles and vectors, kinks, and sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from distkg.kernels.scores import pairwise
from distkg.kernels.scores.row_order import RowOrder
from distkg.kernels.scores.similarity import PairwiseKernel

NAMES = ["dot", "squared", "l1", "scaled_l1", "scaled_squared", "affine_l1", "modulus"]
WIDER = {"scaled_l1": 2.0, "scaled_squared": 2.0, "affine_l1": 1.5}
FORMS = ["indexed", "block", "ordered"]


def query_width(name: str, width: int) -> int:
    return int(WIDER.get(name, 1.0) * width)


def compiled(name: str, form: str, grad: Tensor, query: Tensor, rows: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    """Scores [B, K], and gradients of query and rows added to 1."""
    kernel = PairwiseKernel.of(name)
    if form == "block":
        sums = torch.ones_like(query), torch.ones_like(rows)
        kernel.block[1](*(tensor.numpy() for tensor in (grad, query, rows, *sums)))
        return kernel.scores(query, rows), *sums
    order = RowOrder(index.numpy(), len(rows)) if form == "ordered" else None
    sums = torch.ones_like(query), torch.ones_like(rows)
    kernel.add_indexed_gradients(grad, query, rows, index, *sums, order)
    return kernel.indexed_scores(query, rows, index, order), *sums


@pytest.mark.parametrize("width", [2, 10, 16, 74])
@pytest.mark.parametrize("queries", [1, 6])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_forms_are_the_reference(name: str, form: str, queries: int, width: int) -> None:
    """Widths below and above those of a vector, and odd numbers of queries and rows, which fill no tile."""
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(queries, query_width(name, width), generator=generator)
    rows = torch.randn(29, width, generator=generator)
    index = torch.arange(29).expand(queries, -1).contiguous()
    if form != "block":
        index = torch.randint(29, (queries, 45), generator=generator)
    grad = torch.randn(index.shape, generator=generator)

    q, c = query.double().requires_grad_(), rows.double().requires_grad_()
    expected = getattr(pairwise, f"reference_{name}")(q[:, None], c[index])
    expected.backward(grad.double())
    assert q.grad is not None
    assert c.grad is not None
    scores, to_query, to_rows = compiled(name, form, grad, query, rows, index)
    torch.testing.assert_close(scores.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(to_query.double(), 1 + q.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(to_rows.double(), 1 + c.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["l1", "scaled_l1", "affine_l1", "modulus"])
def test_the_derivative_at_a_kink_is_zero(name: str, form: str) -> None:
    query, rows, index = torch.ones(1, query_width(name, 4)), torch.ones(1, 4), torch.zeros(1, 1, dtype=torch.int64)
    if name == "affine_l1":  # 1 + 1·1 − 2·1
        query[:, 4:] = -2
    _, to_query, to_rows = compiled(name, form, torch.ones(1, 1), query, rows, index)
    assert (to_query == 1).all()  # what was there
    assert (to_rows == 1).all()
    point = query.clone().requires_grad_()
    getattr(pairwise, f"reference_{name}")(point, rows).backward()
    assert point.grad is not None
    assert not point.grad.any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(name: str, form: str, bad: float) -> None:
    """A run that diverged must not look healthy. The distance of an infinite point has a finite slope, so only NaN
    stays in every gradient."""
    query, rows, index = torch.randn(2, query_width(name, 16)), torch.randn(2, 16), torch.tensor([[0, 1], [0, 1]])
    rows[1, 3] = bad
    scores, _, to_rows = compiled(name, form, torch.ones(2, 2), query, rows, index)
    assert scores[:, 0].isfinite().all()
    assert not scores[:, 1].isfinite().any()
    assert to_rows[0].isfinite().all()
    if np.isnan(bad) and name != "dot":  # a row's slope of a product is the query
        assert to_rows[1].isnan().any()


def test_a_row_order_sorts_entries_by_row() -> None:
    order = RowOrder(np.array([[3, 0, 3], [1, 3, 0]]), 5)
    assert order.starts.tolist() == [0, 2, 3, 3, 6, 6]
    assert order.queries.tolist() == [0, 1, 1, 0, 0, 1]
    assert order.places.tolist() == [1, 5, 3, 0, 2, 4]
    out = np.empty((2, 3), np.float32)
    order.back(np.array([0, 1, 2, 3, 4, 5], np.float32), out)
    assert out.tolist() == [[3, 0, 4], [2, 5, 1]]
    assert order.sorted(out).tolist() == [0, 1, 2, 3, 4, 5]


def test_references_against_numbers_written_by_hand() -> None:
    query, candidate = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 2.0])
    assert pairwise.reference_dot(query, candidate).item() == 1.0
    assert pairwise.reference_squared(query, candidate).item() == -13.0
    assert pairwise.reference_l1(query, candidate).item() == -5.0
    assert pairwise.reference_scaled_l1(torch.tensor([3.0, -1.0, 2.0, -2.0]), candidate).item() == -4.0
    assert pairwise.reference_scaled_squared(torch.tensor([3.0, -1.0, 2.0, -2.0]), candidate).item() == -10.0
    # 3 + 2·1 + 0.5·2
    assert pairwise.reference_affine_l1(torch.tensor([3.0, 2.0, 0.5]), candidate).item() == -6.0
    # 3 - i and 1 + 2i: |2 - 3i|
    assert pairwise.reference_modulus(query, candidate).item() == pytest.approx(-3.6055513)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_columns_that_do_not_follow_each_other_in_memory(name: str, form: str) -> None:
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(query_width(name, 16), 3, generator=generator).T
    rows, grad = torch.randn(5, 32, generator=generator)[:, ::2], torch.randn(5, 3, generator=generator).T
    index = torch.arange(5).expand(3, -1)
    kernel = PairwiseKernel.of(name)
    if form == "block":
        scattered = kernel.scores(query, rows), *kernel.gradients(grad, query, rows)
    else:
        order = RowOrder(index.numpy(), 5) if form == "ordered" else None
        gradients = kernel.indexed_gradients(grad, query, rows, index, order)
        scattered = kernel.indexed_scores(query, rows, index, order), *gradients
    whole = kernel.scores(query.contiguous(), rows.contiguous())
    gradients = kernel.gradients(grad.contiguous(), query.contiguous(), rows.contiguous())
    for got, expected in zip(scattered, (whole, *gradients), strict=True):
        torch.testing.assert_close(got, expected)
