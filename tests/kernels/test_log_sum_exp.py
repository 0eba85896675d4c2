"""log Σ exp of activated distances against the formula in float64, where numbers are large, and where none are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distkg.kernels.products import products_in
from distkg.kernels.scores import log_sum_exp
from distkg.kernels.scores.activated import ActivatedDistance
from distkg.kernels.scores.activations import ACTIVATIONS, Activation, Double, Halin, Hanon
from distkg.kernels.scores.distance_sums import distance_log_sum_exp
from distkg.kernels.scores.distance_sums.distance_log_sum_exp import DistanceLogSumExp
from distkg.kernels.scores.distance_sums.tiled_log_sum_exp import TiledLogSumExp
from distkg.kernels.scores.log_sum_exp import LogSumExp, SoftmaxLogSumExp
from distkg.kernels.scores.similarity import SQUARED_L2

EACH = pytest.mark.parametrize("name", list(ACTIVATIONS))
KEPT_AND_AGAIN = pytest.mark.parametrize("keep", [True, False])


def problem(queries: int = 7, candidates: int = 43, dim: int = 5, spread: float = 0.4) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, D + 1] with positive factors, candidates [N, D], weights [B]."""
    generator = torch.Generator().manual_seed(queries + candidates)
    query = spread * torch.randn(queries, dim + 1, generator=generator)
    query[:, -1] = 0.2 + torch.rand(queries, generator=generator)
    rows = spread * torch.randn(candidates, dim, generator=generator)
    return query, rows, torch.rand(queries, generator=generator)


def exact(activation: Activation, query: Tensor, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log Σ exp in float64 by torch's own functions, and the gradients of its weighted sum by autograd."""
    query, rows = query.double().requires_grad_(), rows.double().requires_grad_()
    distance = (query[:, None, :-1] - rows).square().sum(-1)
    log_sum = torch.logsumexp(-activation(query[:, -1:] * distance), 1)
    gradients = torch.autograd.grad((weight * log_sum).sum(), (query, rows))
    return log_sum.detach(), *gradients


def both_passes(reduction: LogSumExp, query: Tensor, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_sum = reduction.first_pass()
    grad_query, grad_rows = torch.zeros_like(query), torch.zeros_like(rows)
    reduction.second_pass(log_sum, weight, grad_query, grad_rows)
    return log_sum, grad_query, grad_rows


def assert_all_close(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float = 2e-5) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        room = tolerance * float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs.float(), rtol=tolerance, atol=room)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_sum_exp, "BLOCK_ROWS", 16)
    monkeypatch.setattr(distance_log_sum_exp, "_LEAST_ROWS", 16)
    monkeypatch.setattr(distance_log_sum_exp, "_BLOCK_SCORES", 32)


@EACH
@KEPT_AND_AGAIN
@pytest.mark.parametrize("dim", [5, 70])
@pytest.mark.usefixtures("small_blocks")
def test_compiled_and_plain_are_the_formula(name: str, keep: bool, dim: int) -> None:
    activation = ACTIVATIONS[name](10.0, None)
    query, rows, weight = problem(dim=dim, spread=0.9 / dim**0.5)
    expected = exact(activation, query, rows, weight)
    for compiled in (TiledLogSumExp, DistanceLogSumExp):
        reduction = compiled(activation, query[:, :-1].contiguous(), query[:, -1].contiguous(), rows, keep=keep)
        assert_all_close(both_passes(reduction, query, rows, weight), expected)
    plain = SoftmaxLogSumExp(ActivatedDistance(activation), query, rows, keep=keep)
    assert_all_close(both_passes(plain, query, rows, weight), expected, 1e-4)


@EACH
@KEPT_AND_AGAIN
@pytest.mark.parametrize(("queries", "candidates", "dim"), [(131, 515, 33), (1, 256, 8), (128, 257, 1), (3, 1, 50)])
def test_tiles_of_any_size_are_the_formula(name: str, keep: bool, queries: int, candidates: int, dim: int) -> None:
    """The nearest candidates come last, so that sums of activations without a bound are rescaled between tiles."""
    activation = ACTIVATIONS[name](10.0, None)
    query, rows, weight = problem(queries, candidates, dim, spread=0.9 / dim**0.5)
    rows *= torch.linspace(1.5, 0.5, candidates)[:, None]
    got = both_passes(ActivatedDistance(activation).log_sum_exp(query, rows, keep=keep), query, rows, weight)
    assert_all_close(got, exact(activation, query, rows, weight), 5e-5)


def test_products_in_reduced_precision_come_from_the_library() -> None:
    query, rows, _ = problem()
    similarity = ActivatedDistance(Hanon())
    assert isinstance(similarity.log_sum_exp(query, rows, keep=True), TiledLogSumExp)
    with products_in(torch.bfloat16):
        assert isinstance(similarity.log_sum_exp(query, rows, keep=True), DistanceLogSumExp)


@KEPT_AND_AGAIN
@pytest.mark.usefixtures("small_blocks")
def test_squared_distances_without_activation(keep: bool) -> None:
    query, rows, weight = problem(spread=1.5)
    vectors = query[:, :-1].contiguous()
    expected = exact(Double(), torch.cat((vectors, torch.full((7, 1), 0.5)), 1), rows, weight)
    got = both_passes(SQUARED_L2.log_sum_exp(vectors, rows, keep=keep), vectors, rows, weight)
    assert_all_close(got, (expected[0], expected[1][:, :-1], expected[2]))


def test_a_sum_written_by_hand() -> None:
    query, rows = torch.tensor([[0.0, 0.5]]), torch.tensor([[0.0], [math.sqrt(math.log(2))], [math.sqrt(math.log(4))]])
    reduction = ActivatedDistance(Double()).log_sum_exp(query, rows, keep=True)  # 2 · ½ d² = 0, ln 2, ln 4
    assert reduction.first_pass().item() == pytest.approx(math.log(1.75), rel=1e-6)


@KEPT_AND_AGAIN
@pytest.mark.parametrize("name", ["double", "x_exp", "artanh"])
@pytest.mark.usefixtures("small_blocks")
def test_distances_so_large_that_every_term_alone_would_vanish(name: str, keep: bool) -> None:
    """The nearest candidate comes last, so that what was summed before must be put in proportion."""
    activation = ACTIVATIONS[name](10.0, None)
    query, rows, weight = problem(spread=0.1)
    query[:, 0] += 30.0
    rows[:, 0] += torch.linspace(-9, 9, len(rows))
    expected = exact(activation, query, rows, weight)
    assert float(expected[0].max()) < -200
    got = both_passes(ActivatedDistance(activation).log_sum_exp(query, rows, keep=keep), query, rows, weight)
    assert_all_close(got, expected, 1e-3)  # differences of numbers near 1000 in float32


@EACH
@pytest.mark.parametrize("distance", [0.0, 1e-20, 1.0, 1e3, 1e15])
def test_both_ends_stay_finite(name: str, distance: float) -> None:
    query, rows = torch.tensor([[distance, 1.0]]), torch.zeros(3, 1)
    weight = torch.ones(1)
    got = both_passes(
        ActivatedDistance(ACTIVATIONS[name](10.0, None)).log_sum_exp(query, rows, keep=True), query, rows, weight
    )
    assert all(tensor.isfinite().all() for tensor in got)


@EACH
def test_a_broken_vector_reaches_the_sums(name: str) -> None:
    similarity = ActivatedDistance(ACTIVATIONS[name](10.0, None))
    query, rows, _ = problem()
    query[2, 0] = math.nan
    assert similarity.log_sum_exp(query, rows, keep=True).first_pass().isnan().nonzero().flatten().tolist() == [2]
    query[2, 0], rows[3, 1] = 0.0, math.nan
    assert similarity.log_sum_exp(query, rows, keep=True).first_pass().isnan().all()


def test_no_candidates_and_no_queries() -> None:
    query, rows, weight = problem()
    for similarity in (ActivatedDistance(Hanon()), ActivatedDistance(Double())):
        log_sum, grad_query, _ = both_passes(
            similarity.log_sum_exp(query, rows[:0], keep=True), query, rows[:0], weight
        )
        assert float(log_sum.max()) < -1e38
        assert not grad_query.any()
        log_sum, _, grad_rows = both_passes(
            similarity.log_sum_exp(query[:0], rows, keep=True), query[:0], rows, weight[:0]
        )
        assert log_sum.shape == (0,)
        assert not grad_rows.any()


@settings(deadline=None, max_examples=60)
@given(
    limit=st.floats(0.5, 200),
    steepness=st.floats(0.5, 20),
    scale=st.floats(0.01, 5),
    spread=st.floats(0.01, 1.5),
    bounded=st.sampled_from([Hanon, Halin]),
)
def test_any_limit_and_steepness(
    limit: float, steepness: float, scale: float, spread: float, bounded: type[Activation]
) -> None:
    activation = bounded(limit, steepness)
    query, rows, weight = problem(4, 9, spread=spread)
    query[:, -1] = scale
    log_sum = ActivatedDistance(activation).log_sum_exp(query, rows, keep=True).first_pass()
    expected = exact(activation, query, rows, weight)[0]
    # A float32 distance is off by 1e-6 of |q|² + |c|², which the slope magnifies.
    room = 1e-5 + 2e-6 * scale * limit * steepness * 10 * spread**2
    torch.testing.assert_close(log_sum, expected.float(), rtol=1e-5, atol=room)
