"""Collectives on one rank, where they are the identity, and on three."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from distributed import run_ranks

from distkg.sharding.ranks import Ranks


def every_collective(ranks: Ranks) -> dict[str, Any]:
    """What each collective makes of numbers that tell the ranks apart."""
    mine = torch.tensor([[1.0 + ranks.rank, 10.0]])
    summed, largest, smallest, later = mine.clone(), mine.clone(), mine.clone(), mine.clone()
    ranks.all_reduce(summed)
    ranks.all_reduce(largest, "max")
    ranks.all_reduce(smallest, "min")
    ranks.all_reduce(later, wait=False).wait()
    # Rank r sends w + 1 copies of 10 r + w to rank w.
    inp = torch.cat([torch.full((w + 1,), 10 * ranks.rank + w) for w in range(ranks.size)])
    received = torch.empty(ranks.size * (ranks.rank + 1), dtype=torch.int64)
    shares = [ranks.rank + 1] * ranks.size
    ranks.all_to_all(received, inp, shares, [w + 1 for w in range(ranks.size)])
    parts = torch.arange(2.0 * ranks.size) * (1 + ranks.rank)
    return {
        "sum": summed.tolist(),
        "max": largest.tolist(),
        "min": smallest.tolist(),
        "later": later.tolist(),
        "received": received.tolist(),
        "gathered": ranks.all_gather(mine).tolist(),
        "scattered": ranks.reduce_scatter(parts).tolist(),
        "broadcast": ranks.broadcast(mine.clone(), ranks.size - 1).tolist(),
        "object": ranks.broadcast_object({"from": ranks.rank}, ranks.size - 1),
        "first": ranks.first,
    }


def test_one_rank_talks_to_itself() -> None:
    assert every_collective(Ranks.single()) == {
        "sum": [[1.0, 10.0]],
        "max": [[1.0, 10.0]],
        "min": [[1.0, 10.0]],
        "later": [[1.0, 10.0]],
        "received": [0],
        "gathered": [[1.0, 10.0]],
        "scattered": [0.0, 1.0],
        "broadcast": [[1.0, 10.0]],
        "object": {"from": 0},
        "first": True,
    }
    Ranks.single().barrier()


def every_collective_over_sockets(ranks: Ranks) -> dict[str, Any]:
    return every_collective(Ranks.from_process_group(ranks.device, share_memory=False))


@pytest.mark.parametrize("collectives", [every_collective, every_collective_over_sockets])
def test_three_ranks_by_numbers_written_by_hand(collectives: Callable[[Ranks], dict[str, Any]]) -> None:
    outcome = run_ranks(3, collectives)
    for rank, got in enumerate(outcome):
        assert got["sum"] == got["later"] == [[6.0, 30.0]]
        assert got["max"] == [[3.0, 10.0]]
        assert got["min"] == [[1.0, 10.0]]
        assert got["received"] == [rank] * (rank + 1) + [10 + rank] * (rank + 1) + [20 + rank] * (rank + 1)
        assert got["gathered"] == [[1.0, 10.0], [2.0, 10.0], [3.0, 10.0]]
        assert got["scattered"] == [12.0 * rank, 12.0 * rank + 6.0]  # parts times 1 + 2 + 3
        assert got["broadcast"] == [[3.0, 10.0]]
        assert got["object"] == {"from": 2}
        assert got["first"] is (rank == 0)


def test_without_a_process_group_there_is_one_rank() -> None:
    ranks = Ranks.from_process_group(torch.device("cpu"))
    assert (ranks.rank, ranks.size, ranks.first) == (0, 1, True)


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(KeyError):
        Ranks(size=2).all_reduce(torch.zeros(1), "mean")


def traffic_of_each(ranks: Ranks) -> list[int]:
    """Bytes counted for each collective over 12 float32."""
    counted = []
    for collective in (
        lambda: ranks.all_reduce(torch.zeros(12)),
        lambda: ranks.all_gather(torch.zeros(12)),
        lambda: ranks.reduce_scatter(torch.zeros(12)),
    ):
        before = ranks.traffic.bytes
        collective()
        counted.append(ranks.traffic.bytes - before)
    return counted


def test_traffic_counts_both_ways_and_nothing_on_one_rank() -> None:
    # 48 bytes: a ring reduction moves 2/3 of them twice each way; a gather sends two copies and receives two;
    # a scatter moves two parts of 16 each way.
    assert run_ranks(3, traffic_of_each) == [[128, 192, 64]] * 3
    assert traffic_of_each(Ranks.single()) == [0, 0, 0]
