"""Hardness-aware activations: published points, slopes, and both ends of the number line."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distkg.kernels.scores.activations import ACTIVATIONS, Activation, Artanh, Double, Halin, Hanon, XExp

ALL: list[Activation] = [ACTIVATIONS[name](10.0, None) for name in ACTIVATIONS]
EACH = pytest.mark.parametrize("activation", ALL, ids=list(ACTIVATIONS))


def at(activation: Activation, *points: float) -> list[float]:
    return activation(torch.tensor(points, dtype=torch.float64)).tolist()


def test_hanon_at_points_computed_from_its_printed_form() -> None:
    # 1 / (1/10 + exp(-3 (x - 0.5))) by hand calculator.
    points = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 3.0)
    expected = [0.218, 0.451, 0.909, 1.747, 3.095, 4.869, 6.676, 8.096, 9.000, 9.945]
    assert at(Hanon(10.0), *points) == pytest.approx(expected, abs=1e-3)
    assert at(Hanon(5.0, 2.0), 1.0) == pytest.approx([1 / (1 / 5 + math.exp(-1))])


def test_hanon_is_steepest_where_the_paper_says() -> None:
    x = torch.linspace(0, 3, 3001, dtype=torch.float64)
    slope = Hanon(10.0).slope(x)
    assert float(slope.max()) == pytest.approx(7.5, abs=1e-4)
    assert float(x[slope.argmax()]) == pytest.approx(0.5 + math.log(10) / 3, abs=1e-3)


def test_the_others_at_points_written_by_hand() -> None:
    assert at(Halin(10.0), 0, 0.5, 1, 1.5, 1.8, 4) == pytest.approx([0, 1, 2, 7, 10, 10])
    assert at(Halin(3.0, 4.0), 1, 1.25, 2) == pytest.approx([2, 3, 3])
    assert at(Double(), 0, 1.5) == [0, 3]
    assert at(XExp(), 0, 1, 2, 11) == pytest.approx([0, math.e, 2 * math.e**2, math.exp(10) * 21])
    assert at(Artanh(), 0, 0.5, 1.99) == pytest.approx([0, math.log(3), math.log(199) + 2 / 0.0199])


@EACH
@given(x=st.floats(0, 30))
def test_slopes_are_the_derivative_and_activations_rise(activation: Activation, x: float) -> None:
    for bend in (0.99, 1.0, 1.8, 10.0):
        if abs(x - bend) < 1e-4:
            return
    step = 1e-6
    low, high = at(activation, x - step, x + step)
    slope = float(activation.slope(torch.tensor([x], dtype=torch.float64)))
    assert (high - low) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-6)
    assert slope >= 0


@EACH
@pytest.mark.parametrize("x", [0.0, 1e-30, 0.999999, 1.0, 88.0, 1e6, 1e20])
def test_values_and_gradients_stay_finite(activation: Activation, x: float) -> None:
    point = torch.tensor([x], requires_grad=True)
    value = activation(point)
    value.sum().backward()
    assert value.isfinite().all()
    assert point.grad is not None
    assert point.grad.isfinite().all()
    torch.testing.assert_close(point.grad, activation.slope(point.detach()), rtol=1e-4, atol=1e-6)


@EACH
def test_nan_stays_nan(activation: Activation) -> None:
    assert activation(torch.tensor([math.nan])).isnan().all()


def test_what_is_bounded_stays_below_its_limit() -> None:
    x = torch.linspace(0, 1e4, 1001)
    for limit in (0.5, 5.0, 20.0):
        assert float(Hanon(limit)(x).max()) <= limit * (1 + 1e-6)
        assert float(Halin(limit)(x).max()) <= limit
