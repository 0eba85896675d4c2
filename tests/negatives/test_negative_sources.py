"""Where negatives are drawn from: their distribution, by chi-square with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from distkg.negatives import SOURCES
from distkg.registry import UnknownNameError

DEGREES = np.array([5, 0, 1, 30, 0, 0, 12, 2, 0, 50, 7, 0])
ROWS, EACH = 400, 50


def drawn(name: str, seed: int) -> np.ndarray:
    """How often each entity is drawn."""
    source = SOURCES[name](len(DEGREES), DEGREES)
    sample = source.draw((ROWS, EACH), torch.Generator().manual_seed(seed))
    assert sample.shape == (ROWS, EACH)
    assert sample.dtype == torch.int64
    return np.bincount(sample.flatten().numpy(), minlength=len(DEGREES))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_uniform_draws_every_entity_alike(seed: int) -> None:
    counts = drawn("uniform", seed)
    assert len(counts) == len(DEGREES)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_degree_draws_in_proportion_to_occurrences(seed: int) -> None:
    counts = drawn("degree", seed)
    seen = DEGREES > 0
    assert not counts[~seen].any()
    expected = ROWS * EACH * DEGREES[seen] / DEGREES.sum()
    assert stats.chisquare(counts[seen], expected).pvalue > 1e-3


def test_degree_draws_as_a_ticket_for_each_occurrence_would() -> None:
    """The same two samples of a brute force that keeps one ticket per occurrence cannot be told apart."""
    tickets = np.repeat(np.arange(len(DEGREES)), DEGREES)
    brute = np.bincount(np.random.default_rng(5).choice(tickets, ROWS * EACH), minlength=len(DEGREES))
    seen = DEGREES > 0
    table = np.stack([drawn("degree", 5)[seen], brute[seen]])
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("name", ["uniform", "degree"])
def test_draws_reach_every_entity_whoever_owns_it(name: str) -> None:
    source = SOURCES[name](100, np.ones(100, np.int64))
    sample = source.draw((50, 40), torch.Generator().manual_seed(3)).flatten()
    assert sample.unique().tolist() == list(range(100))


@pytest.mark.parametrize("name", ["uniform", "degree"])
def test_draws_follow_the_generator(name: str) -> None:
    source, generator = SOURCES[name](len(DEGREES), DEGREES), torch.Generator().manual_seed(8)
    first, second = source.draw((4, 20), generator), source.draw((4, 20), generator)
    assert not torch.equal(first, second)
    again = torch.Generator().manual_seed(8)
    assert torch.equal(source.draw((4, 20), again), first)
    assert torch.equal(source.draw((4, 20), again), second)


def test_rows_are_drawn_apart() -> None:
    sample = SOURCES["uniform"](10_000, np.ones(10_000, np.int64)).draw((3, 50), torch.Generator().manual_seed(0))
    assert len({tuple(row) for row in sample.tolist()}) == 3


def test_the_only_entity_of_a_graph_is_drawn() -> None:
    for name in SOURCES:
        assert SOURCES[name](1, np.array([2])).draw((1, 3), torch.Generator()).tolist() == [[0, 0, 0]]


def test_an_unknown_source_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="degree, uniform"):
        SOURCES["degrees"]
