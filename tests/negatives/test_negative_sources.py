"""Where negatives are drawn from: their distribution, by chi-square with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from distkg.negatives import SOURCES, NegativeSource, Queries, TrainingGraph, make_source
from distkg.registry import UnknownNameError

DEGREES = np.array([5, 0, 1, 30, 0, 0, 12, 2, 0, 50, 7, 0])
ROWS, EACH = 400, 50


def graph_of(degrees: np.ndarray) -> TrainingGraph:
    """A graph of which only the occurrences of its entities are known."""
    graph = TrainingGraph.of_triples(np.empty((0, 3)), len(degrees), 1)
    graph.__dict__["degrees"] = degrees
    return graph


def queries(count: int) -> Queries:
    nothing = torch.zeros(count, dtype=torch.int64)
    return Queries(nothing, nothing, nothing)


def source_of(name: str, degrees: np.ndarray = DEGREES) -> NegativeSource:
    return make_source(name, {}, graph_of(degrees))


def sample_of(source: NegativeSource, shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    negatives = source.draw(queries(shape[0]), shape[1], generator)
    assert negatives.left_out is None
    return negatives.entities


def drawn(name: str, seed: int) -> np.ndarray:
    """How often each entity is drawn."""
    sample = sample_of(source_of(name), (ROWS, EACH), torch.Generator().manual_seed(seed))
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
    source = source_of(name, np.ones(100, np.int64))
    sample = sample_of(source, (50, 40), torch.Generator().manual_seed(3)).flatten()
    assert sample.unique().tolist() == list(range(100))


@pytest.mark.parametrize("name", ["uniform", "degree"])
def test_draws_follow_the_generator(name: str) -> None:
    source, generator = source_of(name), torch.Generator().manual_seed(8)
    first, second = sample_of(source, (4, 20), generator), sample_of(source, (4, 20), generator)
    assert not torch.equal(first, second)
    again = torch.Generator().manual_seed(8)
    assert torch.equal(sample_of(source, (4, 20), again), first)
    assert torch.equal(sample_of(source, (4, 20), again), second)


def test_rows_are_drawn_apart() -> None:
    sample = sample_of(source_of("uniform", np.ones(10_000, np.int64)), (3, 50), torch.Generator().manual_seed(0))
    assert len({tuple(row) for row in sample.tolist()}) == 3


def test_the_only_entity_of_a_graph_is_drawn() -> None:
    for name in ("uniform", "degree"):
        assert sample_of(source_of(name, np.array([2])), (1, 3), torch.Generator()).tolist() == [[0, 0, 0]]


def test_an_unknown_source_is_answered_with_the_known_ones() -> None:
    known = "Known: bernoulli, cached, classes, corrupt, degree, k_hop, mixture, near_miss, nearest_neighbour, "
    with pytest.raises(UnknownNameError, match=known):
        SOURCES["degrees"]
