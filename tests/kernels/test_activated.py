"""Activated distances against their formula: every form of scores, and gradients of blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distkg.kernels.scores.activated import ActivatedDistance
from distkg.kernels.scores.activations import ACTIVATIONS, Double, Hanon

EACH = pytest.mark.parametrize("name", list(ACTIVATIONS))


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [6, 5 + 1] with positive factors, candidates [9, 5] of which one equals a query, gradients [6, 9]."""
    generator = torch.Generator().manual_seed(seed)
    query = 0.4 * torch.randn(6, 6, generator=generator)
    query[:, -1] = 0.2 + torch.rand(6, generator=generator)
    candidates = 0.4 * torch.randn(9, 5, generator=generator)
    candidates[3] = query[2, :-1]
    return query, candidates, torch.randn(6, 9, generator=generator)


def plain(name: str, query: Tensor, candidates: Tensor) -> Tensor:
    distance = (query[:, None, :-1] - candidates).square().sum(-1)
    return -ACTIVATIONS[name](10.0, None)(query[:, None, -1] * distance)


def test_a_number_written_by_hand() -> None:
    query, candidate = torch.tensor([[1.0, 0.0, 0.25]]), torch.tensor([[0.0, 1.0]])  # c d² = 0.25 · 2
    assert ActivatedDistance(Double()).scores(query, candidate).item() == pytest.approx(-1.0)
    assert ActivatedDistance(Hanon(10.0)).scores(query, candidate).item() == pytest.approx(-1 / 1.1)


@EACH
def test_every_form_gives_the_formula(name: str) -> None:
    similarity = ActivatedDistance(ACTIVATIONS[name](10.0, None))
    query, candidates, _ = problem()
    expected = plain(name, query.double(), candidates.double()).float()
    torch.testing.assert_close(similarity.scores(query, candidates), expected, rtol=1e-4, atol=1e-5)
    pairs = similarity.pairs(query.repeat_interleave(9, 0), candidates.repeat(6, 1)).view(6, 9)
    torch.testing.assert_close(pairs, expected, rtol=1e-4, atol=1e-5)
    index = torch.arange(9).flip(0).expand(6, -1).contiguous()
    indexed = similarity.indexed(query, candidates, index)
    torch.testing.assert_close(indexed, expected.flip(1), rtol=1e-4, atol=1e-5)


@EACH
def test_gradients_of_every_form_are_those_of_the_formula(name: str) -> None:
    similarity = ActivatedDistance(ACTIVATIONS[name](10.0, None))
    query, candidates, grad = problem(seed=1)
    exact = query.double().requires_grad_(), candidates.double().requires_grad_()
    expected = torch.autograd.grad(plain(name, *exact), exact, grad.double())
    index = torch.arange(9).expand(6, -1).contiguous()
    for form in (similarity.block, lambda q, c: similarity.indexed(q, c, index)):
        leaves = query.clone().requires_grad_(), candidates.clone().requires_grad_()
        for got, want in zip(torch.autograd.grad(form(*leaves), leaves, grad), expected, strict=True):
            torch.testing.assert_close(got, want.float(), rtol=2e-4, atol=2e-5)


def test_a_broken_vector_never_gets_a_finite_score() -> None:
    query, candidates, _ = problem()
    query[1, 0], candidates[4, 2] = math.nan, math.nan
    broken = ActivatedDistance(Hanon()).scores(query, candidates).isnan()
    expected = torch.zeros(6, 9, dtype=torch.bool)
    expected[1], expected[:, 4] = True, True
    assert torch.equal(broken, expected)


def test_no_candidates_and_no_queries_give_empty_scores() -> None:
    query, candidates, _ = problem()
    similarity = ActivatedDistance(Hanon())
    assert similarity.scores(query, candidates[:0]).shape == (6, 0)
    assert similarity.scores(query[:0], candidates).shape == (0, 9)
