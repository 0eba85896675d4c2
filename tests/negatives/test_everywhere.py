"""Bernoulli's shares against their definition and against PyKEEN's sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distkg.negatives import Queries, TrainingGraph, make_source
from distkg.negatives.everywhere import head_share

# Relation 0: one head with four tails. Relation 1: three heads share a tail, and one has another.
TRIPLES = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 0, 4], [1, 1, 5], [2, 1, 5], [3, 1, 5], [3, 1, 6]])


def test_the_side_with_fewer_partners_is_replaced_more_often() -> None:
    # Relation 0: 4 tails per head, 1 head per tail. Relation 1: 4/3 tails per head, 2 heads per tail. 2: no triples.
    assert head_share(TRIPLES, 3).tolist() == pytest.approx([4 / 5, 0.4, 0.5])


def test_kept_negatives_have_the_shares_of_the_definition() -> None:
    source = make_source("bernoulli", {}, TrainingGraph.of_triples(TRIPLES, 7, 2))
    both = torch.tensor([[0, 0, 1], [1, 2, 0], [1, 1, 5], [5, 3, 1]])  # each relation forward and back
    drawn = source.draw(Queries(*both.T.contiguous()), 40_000, torch.Generator().manual_seed(0))
    assert drawn.left_out is not None
    kept = (~drawn.left_out).sum(1).tolist()
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
