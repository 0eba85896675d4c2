"""Edges around nodes: which can be drawn, how often each is, and that both samplers draw alike."""

from __future__ import annotations

import numpy as np
import pytest

from distkg.graph.neighbourhoods import DglSampler, EdgeSampler, PlainSampler
from tests.with_dgl import needs_dgl

SAMPLERS = pytest.mark.parametrize("make", [PlainSampler, pytest.param(DglSampler, marks=needs_dgl)])
NODES = 12


def edges() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, NODES, 40), rng.integers(0, NODES, 40)


@SAMPLERS
def test_with_room_for_all_it_is_what_lies_within_so_many_steps(make) -> None:  # type: ignore[no-untyped-def]
    source, target = edges()
    sample: EdgeSampler = make(source, target, NODES)
    for start in range(NODES):
        for steps in (1, 2, 3):
            near, expected = {start}, set()
            for _ in range(steps):
                new = {e for e in range(40) if source[e] in near}
                expected |= new
                near |= {int(target[e]) for e in new}
            assert set(sample(np.array([start]), [100] * steps, 0).tolist()) == expected


@SAMPLERS
def test_every_edge_of_a_node_is_as_likely(make) -> None:  # type: ignore[no-untyped-def]
    source, target = np.zeros(10, dtype=np.int64), np.arange(10) % NODES
    sample: EdgeSampler = make(source, target, NODES)
    counts = np.zeros(10)
    for seed in range(2000):
        found = sample(np.array([0]), [3], seed)
        assert len(found) == 3
        counts[found] += 1
    assert counts == pytest.approx(np.full(10, 600), rel=0.12)


@SAMPLERS
def test_a_seed_decides_and_only_new_nodes_are_followed(make) -> None:  # type: ignore[no-untyped-def]
    source, target = edges()
    sample: EdgeSampler = make(source, target, NODES)
    starts = np.array([3, 5, 3])
    first, again = (sample(starts, [2, 2], 7) for _ in range(2))
    assert np.array_equal(first, again)
    assert any(not np.array_equal(first, sample(starts, [2, 2], seed)) for seed in range(8, 20))
    per_node = np.bincount(source[first], minlength=NODES)
    assert per_node.max() <= 2, "a node met again would have been asked again"
