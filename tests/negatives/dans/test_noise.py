"""Noise schedules by hand, and steps that undo each other."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from distkg.negatives.dans.noise import NoiseSchedule


def schedule(*difficulty: float, steps: int = 4, sharpness: float = 1.0) -> NoiseSchedule:
    return NoiseSchedule.of_difficulty(
        torch.tensor(difficulty), steps, first=0.1, low=0.2, high=0.6, sharpness=sharpness
    )


def test_harder_entities_get_more_noise_up_to_their_own_bound() -> None:
    found = schedule(0.0, 0.5, 1.0)
    assert found.added[:, -1].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert found.added[1].tolist() == pytest.approx([0.175, 0.25, 0.325, 0.4])
    assert found.kept[1].tolist() == pytest.approx([0.825, 0.825 * 0.75, 0.825 * 0.75 * 0.675, 0.25059375])
    assert schedule(0.25, sharpness=0.5).added[0, -1] == pytest.approx(0.4)
    assert schedule(0.25, sharpness=0.0).added[0, -1] == pytest.approx(0.6), "difficulty decides nothing"


def test_noise_of_all_steps_at_once_is_that_of_one_after_the_other() -> None:
    found, generator = schedule(0.3), torch.Generator().manual_seed(0)
    vectors = torch.full((200_000, 1), 2.0)
    for step in range(4):
        added = found.added[0, step]
        vectors = (1 - added).sqrt() * vectors + added.sqrt() * torch.randn(vectors.shape, generator=generator)
    many = NoiseSchedule(found.added.expand(200_000, -1), found.kept.expand(200_000, -1))
    noise = torch.randn(vectors.shape, generator=generator)
    at_once = many.noisy(torch.full_like(vectors, 2.0), torch.full((200_000,), 4), noise)
    assert float(at_once.mean()) == pytest.approx(float(vectors.mean()), abs=0.01)
    assert float(at_once.std()) == pytest.approx(float(vectors.std()), abs=0.01)


def test_the_last_step_back_with_the_true_noise_gives_the_vector() -> None:
    found, generator = schedule(0.1, 0.9), torch.Generator().manual_seed(0)
    vectors, noise = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    noisy = found.noisy(vectors, torch.tensor([1, 1]), noise)
    back = found.back(noisy, 1, 0, noise, torch.full_like(noise, 1e6), "resolved")
    assert back == pytest.approx(vectors, abs=1e-6)


def test_a_step_back_is_the_mean_of_ddpm_and_fresh_noise() -> None:
    found, one = schedule(0.5), torch.ones(1, 1)
    # x = 1, ε = 1, z = 1 at step 2: β = .25, ᾱ = .825 · .75
    kept = 0.825 * 0.75
    expected = (1 - 0.25 / (1 - kept) ** 0.5) / 0.75**0.5 + 0.25**0.5
    assert float(found.back(one, 2, 1, one, one, "resolved")) == pytest.approx(expected)
    # Equation 9 as printed: 1 / √α - (1 - √α) / (√α √β) + √β
    literal = 1 / 0.75**0.5 - (1 - 0.75**0.5) / (0.75**0.5 * 0.25**0.5) + 0.25**0.5
    assert float(found.back(one, 2, 1, one, one, "paper")) == pytest.approx(literal)


def test_steps_taken_back_at_once_have_the_variance_of_all_of_them() -> None:
    found, one = schedule(0.5), torch.ones(1, 1)
    # Steps 4 and 3 of β = .325 and .4: what is left is .675 · .6 of the square, ᾱ before them .825 · .75.
    left, kept = 0.675 * 0.6, 0.825 * 0.75 * 0.675 * 0.6
    expected = (1 - (1 - left) / (1 - kept) ** 0.5) / left**0.5 + (1 - left) ** 0.5
    assert float(found.back(one, 4, 2, one, one, "resolved")) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("way", [[4, 3, 2, 1, 0], [4, 2, 0], [4, 0]])
def test_whatever_the_strides_vectors_come_back_to_where_they_were(way: list[int]) -> None:
    """With the noise that is truly in them predicted, vectors that were all alike are alike again."""
    found, generator = schedule(0.3), torch.Generator().manual_seed(0)
    every = NoiseSchedule(found.added.expand(100_000, -1), found.kept.expand(100_000, -1))
    clean = torch.full((100_000, 1), 2.0)
    vectors = every.noisy(clean, torch.full((100_000,), 4), torch.randn(clean.shape, generator=generator))
    for step, to in pairwise(way):
        kept = found.kept[0, step - 1]
        inside = (vectors - kept.sqrt() * clean) / (1 - kept).sqrt()
        vectors = every.back(vectors, step, to, inside, torch.randn(clean.shape, generator=generator), "resolved")
        mean, variance = (2 * found.kept[0, to - 1].sqrt(), 1 - found.kept[0, to - 1]) if to else (2.0, 0.0)
        assert float(vectors.mean()) == pytest.approx(float(mean), abs=0.01)
        assert float(vectors.var()) >= float(variance) - 0.01
    assert torch.allclose(vectors, clean, atol=1e-5)
