"""Sources that draw from all entities: by chi-square with fixed seeds, and Bernoulli against PyKEEN's sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from distkg.negatives import SOURCES, NegativeSource, Queries, TrainingGraph, make_source
from distkg.negatives.static.global_samplers import head_share
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
    assert negatives.mask is None
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


def test_uniform_draws_the_entities_in_memory_alike() -> None:
    for source in (source_of("uniform"), make_source("mixture", {"parts": [{"source": "uniform"}]}, graph_of(DEGREES))):
        source.restrict(np.array([[1, 3], [6, 7]]))
        counts = np.bincount(sample_of(source, (ROWS, EACH), torch.Generator().manual_seed(0)).flatten().numpy())
        assert np.flatnonzero(counts).tolist() == [1, 2, 6]
        assert stats.chisquare(counts[[1, 2, 6]]).pvalue > 1e-3
        assert source.pool_sizes(queries(2)).tolist() == [3, 3]
        source.restrict(None)
        assert len(sample_of(source, (ROWS, EACH), torch.Generator().manual_seed(0)).unique()) == len(DEGREES)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_degree_draws_in_proportion_to_occurrences(seed: int) -> None:
    counts = drawn("degree", seed)
    seen = DEGREES > 0
    assert not counts[~seen].any()
    expected = ROWS * EACH * DEGREES[seen] / DEGREES.sum()
    assert stats.chisquare(counts[seen], expected).pvalue > 1e-3


def test_degree_draws_as_a_ticket_for_each_occurrence_would() -> None:
    """The same two samples of a brute force that keeps one ticket per occurrence cannot be told apart."""
    uniforms = np.repeat(np.arange(len(DEGREES)), DEGREES)
    brute = np.bincount(np.random.default_rng(5).choice(uniforms, ROWS * EACH), minlength=len(DEGREES))
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
    known = "Known: bernoulli, cached, classes, corrupt, dans, degree, k_hop, kmas, mixture, near_miss, "
    with pytest.raises(UnknownNameError, match=known):
        SOURCES["degrees"]


# Relation 0: one head with four tails. Relation 1: three heads share a tail, and one has another.
TRIPLES = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 0, 4], [1, 1, 5], [2, 1, 5], [3, 1, 5], [3, 1, 6]])


def test_the_side_with_fewer_partners_is_replaced_more_often() -> None:
    # Relation 0: 4 tails per head, 1 head per tail. Relation 1: 4/3 tails per head, 2 heads per tail. 2: no triples.
    assert head_share(TRIPLES, 3).tolist() == pytest.approx([4 / 5, 0.4, 0.5])


def test_kept_negatives_have_the_shares_of_the_definition() -> None:
    source = make_source("bernoulli", {}, TrainingGraph.of_triples(TRIPLES, 7, 2))
    both = torch.tensor([[0, 0, 1], [1, 2, 0], [1, 1, 5], [5, 3, 1]])  # each relation forward and back
    drawn = source.draw(Queries(*both.T.contiguous()), 40_000, torch.Generator().manual_seed(0))
    assert drawn.mask is not None
    kept = (~drawn.mask).sum(1).tolist()
    assert kept[1] == 40_000  # heads of relation 0
    assert kept[2] == 40_000  # tails of relation 1
    assert kept[1] / (kept[0] + kept[1]) == pytest.approx(0.8, abs=0.01)
    assert kept[3] / (kept[2] + kept[3]) == pytest.approx(0.4, abs=0.01)


def test_shares_are_pykeens() -> None:
    pytest.importorskip("pykeen", reason="PyKEEN comes with the development dependencies")
    from pykeen.sampling import BernoulliNegativeSampler

    generator = np.random.default_rng(0)
    triples = np.unique(generator.integers(0, [30, 4, 12], (300, 3)), axis=0)
    theirs = BernoulliNegativeSampler(mapped_triples=torch.from_numpy(triples), num_entities=30, num_relations=4)
    assert head_share(triples, 4).tolist() == pytest.approx(theirs.corrupt_head_probability.tolist(), abs=1e-6)
