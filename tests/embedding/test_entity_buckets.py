"""Buckets of entity partitions: every triple has both ends in memory at its step, and every pair of entities meets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from distkg.embedding import entity_buckets
from distkg.embedding.entity_buckets import PARTITIONS, EntityBuckets, buffer_states, partitions_in_use
from distkg.embedding.epoch_order import BucketedTriples, EpochOrder
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards

ENTITIES = 1000


def triples(count: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.stack([rng.integers(high, size=count) for high in (ENTITIES, 4, ENTITIES)], 1).astype(np.int32)


def test_states_of_six_partitions_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entity_buckets, "PARTITIONS", 6)
    states = [[0, 1, 2], [0, 1, 3], [0, 1, 4], [0, 1, 5], [2, 1, 5], [2, 3, 5], [2, 3, 4], [5, 3, 4]]
    assert buffer_states.__wrapped__(3).tolist() == states


@pytest.mark.parametrize("in_use", [2, 3, 10, 33, 63, 64])
def test_every_two_partitions_meet_and_states_differ_in_one(in_use: int) -> None:
    states = buffer_states(in_use)
    together = np.zeros((PARTITIONS, PARTITIONS), bool)
    for state in states:
        assert len(set(state)) == in_use
        together[np.ix_(state, state)] = True
    assert together.all()
    assert all(len(set(after) - set(before)) == 1 for before, after in itertools.pairwise(states))


def test_the_share_counts_the_partitions_that_are_read_and_written_too() -> None:
    assert [partitions_in_use(share) for share in (1.0, 0.5, 0.25, 0.1, 0.001)] == [64, 30, 14, 4, 2]


def within(ranges: np.ndarray, entities: np.ndarray) -> np.ndarray:
    return ((entities[:, None] >= ranges[:, 0]) & (entities[:, None] < ranges[:, 1])).any(1)


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (0, 3), (2, 3)])
def test_both_ends_of_the_triples_of_a_step_are_resident(rank: int, size: int) -> None:
    ranks = Ranks(rank, size)
    everything = triples(4000)
    own = everything[ranks.rank :: size]
    items = BucketedTriples(len(everything), 1, ranks, own, ENTITIES)
    buckets, shards = EntityBuckets(ENTITIES, size, 5, 0.2), Shards(ENTITIES, size)
    order = EpochOrder(items, items.counts(), 50, 5, ranks, buckets)
    visited: list[int] = []
    for step in range(order.steps):
        chosen = order.chosen(1, step).numpy()
        visited += chosen.tolist()
        ends = own[chosen][:, [0, 2]]
        states = buckets.first_states(1, ends[:, 0], ends[:, 1])
        assert (np.diff(states) >= 0).all()
        entities, rows = order.resident_entities(1, step), order.resident_rows(1, step)
        assert entities is not None
        assert rows is not None
        assert within(entities, ends[states == states[0]].ravel()).all()
        low, high = shards.range(ranks.rank)
        assert within(rows[0] + low, ends[(ends >= low) & (ends < high)]).all()
    assert sorted(visited) == list(range(len(own)))


def test_partitions_have_equal_shares_of_every_rank_and_change_with_the_epoch() -> None:
    buckets = EntityBuckets(65_536, 2, 5, 0.2)
    sizes = [[np.diff(buckets.rows(0, slice(s, s + 1), rank)).sum() for s in (0, 100)] for rank in range(2)]
    assert sizes == [[10 * 8 * 64] * 2] * 2
    assert not np.array_equal(buckets.entities(0, 0), buckets.entities(1, 0))


def test_a_table_smaller_than_its_blocks() -> None:
    buckets = EntityBuckets(5, 2, 0, 0.5)
    heads, tails = (grid.ravel() for grid in np.meshgrid(np.arange(5), np.arange(5)))
    for head, tail, state in zip(heads, tails, buckets.first_states(0, heads, tails), strict=True):
        assert within(buckets.entities(0, int(state)), np.array([head, tail])).all()
