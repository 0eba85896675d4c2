"""Negatives from around the anchor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distkg.negatives import Queries, TrainingGraph, make_source
from tests.with_dgl import SAMPLERS

# A path 0-1-2-3-4, and 5-6 apart.
TRIPLES = np.array([[0, 0, 1], [1, 0, 2], [2, 1, 3], [3, 1, 4], [5, 0, 6]])


def ask(*anchors: int) -> Queries:
    nothing = torch.zeros(len(anchors), dtype=torch.int64)
    return Queries(torch.tensor(anchors), nothing, nothing)


def drawn(anchor: int, hops: int, sampler: str) -> set[int]:
    source = make_source("k_hop", {"hops": hops, "sampler": sampler}, TrainingGraph.of_triples(TRIPLES, 8, 2))
    negatives = source.draw(ask(anchor), 200, torch.Generator().manual_seed(0))
    assert negatives.mask is None
    return set(negatives.entities.flatten().tolist())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_walks_end_where_they_can_and_never_at_the_anchor(sampler: str) -> None:
    assert drawn(2, 1, sampler) == {1, 3}
    assert drawn(2, 2, sampler) == {0, 4, 1, 3}  # back at the anchor, the step before counts
    assert drawn(0, 3, sampler) == {1, 3}
    assert drawn(5, 2, sampler) == {6}


def test_an_anchor_without_neighbours_has_no_negatives() -> None:
    source = make_source("k_hop", {}, TrainingGraph.of_triples(TRIPLES, 8, 2))
    negatives = source.draw(ask(7, 2), 5, torch.Generator().manual_seed(0))
    assert negatives.mask is not None
    assert negatives.mask.tolist() == [[True] * 5, [False] * 5]


def test_pools_are_the_entities_within_so_many_hops() -> None:
    source = make_source("k_hop", {"hops": 2}, TrainingGraph.of_triples(TRIPLES, 8, 2))
    assert source.pool_sizes(ask(2, 0, 2, 5, 7)).tolist() == [4, 2, 4, 1, 0]
