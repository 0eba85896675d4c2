"""Bands, their weights and margins, by hand."""

from __future__ import annotations

import math

import pytest

from distkg.negatives.dans.curriculum import band_margins, band_steps, band_weights


def test_bands_lie_at_a_twentieth_a_tenth_a_fifth_and_half_of_the_way() -> None:
    assert band_steps(20) == [1, 2, 4, 10]
    assert band_steps(60) == [3, 6, 12, 30]
    with pytest.raises(ValueError, match=r"8 diffusion steps are too few.*use at least 20"):
        band_steps(8)


def test_easy_bands_come_first_and_hard_ones_last() -> None:
    start, middle, end = (band_weights(progress, 4.0, "resolved").tolist() for progress in (0.0, 0.5, 1.0))
    powers = [math.exp(-4), math.exp(-3), math.exp(-2), math.exp(-1)]
    assert start == pytest.approx([power / sum(powers) for power in powers])
    assert middle == pytest.approx([0.25] * 4)
    assert end == pytest.approx(start[::-1])


def test_the_paper_s_weights_favour_the_hardest_band_at_all_times() -> None:
    assert band_weights(0.0, 4.0, "paper").tolist() == pytest.approx([0.25] * 4)
    # τ = .5: λ [.5, .25, 0, 0]
    powers = [math.exp(2), math.exp(1), 1, 1]
    assert band_weights(0.5, 4.0, "paper").tolist() == pytest.approx([power / sum(powers) for power in powers])
    powers = [math.exp(4 * 0.5**0.5), math.exp(2), 1, 1]
    found = band_weights(0.5, 4.0, "paper", exponent=0.5).tolist()
    assert found == pytest.approx([power / sum(powers) for power in powers])


def test_without_a_curriculum_all_bands_are_alike() -> None:
    assert band_weights(0.9, 4.0, "none").tolist() == [0.25] * 4


def test_margins_grow_with_hardness_and_time() -> None:
    assert band_margins(0.0, 6.0, 0.5).tolist() == [6.0] * 4
    assert band_margins(1.0, 6.0, 0.5).tolist() == pytest.approx([9.0, 8.25, 7.5, 6.75])
