"""Routes against a plain account of who asks whom for what."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from distributed import run_ranks

from distkg.sharding.exchange import Route, plan_routes
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards
from distkg.sharding.table import ShardedTable

ROWS = 7  # on three ranks: 0-2, 3-5 and 6
# By step and rank: several steps planned at once, some of them empty on some ranks or on all.
ASKS = [
    [[0, 3, 6], [3, 4], [0, 1, 2, 3, 4, 5, 6]],
    [[], [], []],
    [[6], [], [0, 6]],
    [[0, 1], [3, 4, 5], [6]],
]


def routes_of(ranks: Ranks, rows: int, asks: list[list[list[int]]]) -> list[dict[str, Any]]:
    sets = [torch.tensor(step[ranks.rank], dtype=torch.int64) for step in asks]
    routes = plan_routes(sets, Shards(rows, ranks.size), ranks)
    table = ShardedTable(rows, 2, None, ranks)
    return [
        {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in asdict(route).items()}
        | {"bytes": bytes_of_a_fetch(table, route)}
        for route in routes
    ]


def bytes_of_a_fetch(table: ShardedTable, route: Route) -> int:
    before = table.ranks.traffic.bytes
    table.fetch(route).wait()
    return table.ranks.traffic.bytes - before


@pytest.fixture(scope="module")
def planned() -> list[list[dict[str, Any]]]:
    """By rank and step."""
    return run_ranks(3, routes_of, ROWS, ASKS)


def test_rows_are_asked_of_their_owners(planned: list[list[dict[str, Any]]]) -> None:
    shards = Shards(ROWS, 3)
    for step, asks in enumerate(ASKS):
        for rank, ids in enumerate(asks):
            route = planned[rank][step]
            assert route["ids"] == ids
            assert route["ask"] == [sum(low <= i < high for i in ids) for low, high in map(shards.range, range(3))]


def test_owners_serve_what_is_asked_in_the_order_of_ranks(planned: list[list[dict[str, Any]]]) -> None:
    shards = Shards(ROWS, 3)
    for step, asks in enumerate(ASKS):
        for rank in range(3):
            low, high = shards.range(rank)
            wanted = [[i - low for i in ids if low <= i < high] for ids in asks]
            route = planned[rank][step]
            assert route["serve"] == [i for part in wanted for i in part]
            assert route["serve_counts"] == [len(part) for part in wanted]
            assert route["updated"] == sorted(set(route["serve"]))
            assert [route["updated"][place] for place in route["position"]] == route["serve"]


def test_bytes_count_what_crosses_between_ranks(planned: list[list[dict[str, Any]]]) -> None:
    # Step 0. Rank 0 asks 2 rows of others and serves rank 2 three; rank 1 asks none and serves 1 + 3; rank 2 asks 6
    # and serves rank 0 one. Eight bytes a row.
    assert [planned[rank][0]["bytes"] for rank in range(3)] == [8 * 5, 8 * 4, 8 * 7]
    assert [planned[rank][3]["bytes"] for rank in range(3)] == [0, 0, 0]


def test_one_rank_asks_only_itself() -> None:
    ids = torch.tensor([1, 4])
    (route,) = plan_routes([ids], Shards(5, 1), Ranks.single())
    assert isinstance(route, Route)
    for part in (route.ids, route.serve, route.updated):
        assert part.tolist() == [1, 4]
    assert route.position.tolist() == [0, 1]
    assert (route.ask, route.serve_counts) == ([2], [2])
    assert bytes_of_a_fetch(ShardedTable(5, 2, None, Ranks.single()), route) == 0
