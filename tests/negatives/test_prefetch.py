"""Negatives drawn ahead of time: what arrives is what was asked for, and what does not is drawn here and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from in_process_pool import InProcessPool, in_process
from torch import Tensor

from distkg.config import PoolConfig
from distkg.kernels.scores.similarity import DOT
from distkg.negatives import (
    SOURCES,
    DrawRequest,
    Negatives,
    NegativeSource,
    Queries,
    TrainingGraph,
    TrainingProgress,
    make_source,
)
from distkg.negatives.prefetch.messages import Reply
from distkg.negatives.prefetch.pool_client import CANDIDATES, PoolClient
from distkg.negatives.prefetch.pool_events import NegativePoolError
from distkg.negatives.prefetch.prefetched_source import hosted_parts, make_hosted_source
from distkg.negatives.prefetch.source_server import make_server
from distkg.sharding.ranks import Ranks

ENTITIES, RELATIONS, COUNT = 40, 3, 5
MIXTURE = {
    "parts": [
        {"source": "uniform", "weight": 1},
        {"source": "relational", "weight": 2},
        {"source": "near_miss", "options": {"neighbours": 4}, "weight": 1},
    ]
}


def graph() -> TrainingGraph:
    rows = np.random.default_rng(0).integers(0, [ENTITIES, RELATIONS, ENTITIES], (150, 3))
    return TrainingGraph.of_triples(np.unique(rows, axis=0), ENTITIES, RELATIONS)


class TableModel:
    """Vectors of all entities and queries in one table; a query is the anchor's vector plus the relation's."""

    def __init__(self, seed: int = 4) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(ENTITIES, 6, generator=generator)
        self.relation_rows = torch.randn(2 * RELATIONS, 6, generator=generator)
        self.ranks, self.similarity, self.entities, self.first = Ranks.single(), DOT, ENTITIES, 0

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        return self.table[anchor] + self.relation_rows[relation]

    def candidates(self, entities: Tensor) -> Tensor:
        return self.table[entities]

    def relations(self) -> Tensor:
        return self.relation_rows[:RELATIONS]

    def own_candidates(self) -> Tensor:
        return self.table


def some_queries(step: int, count: int = 12) -> Queries:
    every = graph().queries()
    return Queries(*torch.from_numpy(every[step * count : (step + 1) * count]).T.contiguous())


def moment(step: int) -> TrainingProgress:
    return TrainingProgress(step / 4, step / 100, step)


def ahead(
    name: str, options: dict[str, Any] | None = None, *, pool: dict[str, Any] | None = None, **faults: Any
) -> tuple[NegativeSource, dict[str, InProcessPool]]:
    pool_of, pools = in_process(graph(), name, options or {}, **faults)
    source = make_hosted_source(name, options or {}, graph(), pool_of, PoolConfig(**(pool or {})))
    source.attach(TableModel())
    return source, pools


def ask_and_draw(source: NegativeSource, step: int, *, asked_before: bool = False) -> Negatives:
    source.advance(moment(step))
    if not asked_before:
        source.prefetch([DrawRequest(moment(step), some_queries(step), COUNT, 100 + step)])
    return source.draw(some_queries(step), COUNT, torch.Generator().manual_seed(7))


def only_client(source: NegativeSource) -> PoolClient[Any, Any]:
    (found,) = source.pool_clients()
    return found


def test_a_delivery_is_what_the_source_itself_draws_with_the_seed_of_the_request() -> None:
    source, _ = ahead("relational")
    itself = make_source("relational", {}, graph())
    for step in range(3):
        expected = itself.draw(some_queries(step), COUNT, torch.Generator().manual_seed(100 + step))
        drawn = ask_and_draw(source, step)
        assert drawn.entities.dtype == torch.int64
        assert torch.equal(drawn.entities, expected.entities)
        assert (drawn.mask is None) == (expected.mask is None)
    assert only_client(source).take_deliveries().delivered == 36


def test_requests_carry_the_vectors_that_a_source_looks_at() -> None:
    model, queries = TableModel(), some_queries(0)
    asked = model.query(queries.anchor, queries.relation).numpy()
    answers = model.candidates(queries.answer).numpy()
    expected = {"near_miss": (asked, None), "nearest_neighbour": (None, answers), "relational": (None, None)}
    for name, vectors in {**expected, "dans": (asked, answers)}.items():
        source, pools = ahead(name)
        ask_and_draw(source, 0)
        (request,) = pools["0"].requests
        for brought, wanted in zip((request.query_vectors, request.answer_vectors), vectors, strict=True):
            assert (brought is None) == (wanted is None)
            assert wanted is None or np.array_equal(brought, wanted)


def test_near_misses_of_a_pool_are_those_of_the_model() -> None:
    source, _ = ahead("near_miss", {"neighbours": 4})
    itself = make_source("near_miss", {"neighbours": 4}, graph())
    itself.attach(TableModel())
    for step in range(3):
        drawn, queries = ask_and_draw(source, step), some_queries(step)
        expected = itself.draw(queries, 400, torch.Generator().manual_seed(0)).entities
        for row, pool in zip(drawn.entities.tolist(), expected.tolist(), strict=True):
            assert set(row) <= set(pool)


def test_relation_vectors_are_published_where_a_source_that_a_pool_draws_looks_at_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SOURCES["kmas"], "hosted_reply", "negatives")
    options = {"schedule": "constant"}
    source, pools = ahead("kmas", options)
    drawn = ask_and_draw(source, 0)
    itself = make_source("kmas", options, graph())
    itself.attach(TableModel())
    expected = itself.draw(some_queries(0), COUNT, torch.Generator().manual_seed(100))
    assert torch.equal(drawn.entities, expected.entities)
    assert list(pools["0"].arrays[0]) == ["candidates", "relations"]


@pytest.mark.parametrize(
    ("name", "options", "sync", "dtype"),
    [
        ("near_miss", {"neighbours": 4}, False, np.float16),
        ("near_miss", {"neighbours": 4}, True, np.float32),
        ("cached", {}, False, np.float16),
        ("dans", {}, False, np.float32),  # it makes vectors of those that are published
    ],
)
def test_vectors_have_the_precision_that_a_source_needs(
    name: str, options: dict[str, Any], sync: bool, dtype: type
) -> None:
    source, pools = ahead(name, options, pool={"sync": sync})
    ask_and_draw(source, 0)
    (arrays,) = pools["0"].arrays
    assert list(arrays) == ["candidates"]
    assert arrays["candidates"].dtype == dtype


def test_vectors_are_published_once_in_a_refresh_period() -> None:
    source, pools = ahead("near_miss", {"refresh": 0.5})
    for step in range(7):
        ask_and_draw(source, step)
    assert pools["0"].published == [0, 2, 4, 6]
    assert [request.version for request in pools["0"].requests] == [0, 0, 2, 2, 4, 4, 6]
    assert only_client(source).take_deliveries().ages == [0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(("refresh", "max_age", "published"), [(100, 1000, [0, 4]), (100, 4, [0, 2, 4, 6])])
def test_vectors_are_published_once_an_epoch_or_before_they_are_too_old(
    refresh: float, max_age: int, published: list[int]
) -> None:
    source, pools = ahead("near_miss", {"refresh": refresh}, pool={"max_age": max_age, "depth": 1})
    for step in range(7):
        ask_and_draw(source, step)
    assert pools["0"].published == published


def late(reply: Reply) -> None:
    return None


def with_ids(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Reply], Reply]:
    return lambda reply: Reply(change(reply.entities), reply.mask, reply.version)


BROKEN = {
    "one column short": with_ids(lambda ids: ids[:, 1:]),
    "one row short": with_ids(lambda ids: ids[1:]),
    "flat": with_ids(np.ravel),
    "not a number": with_ids(lambda ids: np.full(ids.shape, np.nan)),
    "floats": with_ids(lambda ids: ids.astype(np.float32)),
    "an entity too many": with_ids(lambda ids: np.where(ids == ids.max(), ENTITIES, ids)),
    "below zero": with_ids(lambda ids: ids - ENTITIES),
    "not an array": with_ids(lambda ids: ids.tolist()),
    "marks of another shape": lambda reply: Reply(reply.entities, np.zeros((1, 1), bool), reply.version),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_reply_is_replaced_and_counted(fault: str) -> None:
    source, _ = ahead("relational", pool={"fallback": "uniform"}, spoil=BROKEN[fault])
    drawn = ask_and_draw(source, 0)
    expected = make_source("uniform", {}, graph()).draw(some_queries(0), COUNT, torch.Generator().manual_seed(7))
    assert torch.equal(drawn.entities, expected.entities)
    deliveries = only_client(source).take_deliveries()
    assert (deliveries.broken, deliveries.delivered) == (12, 0)


def test_a_broken_reply_is_warned_of_once() -> None:
    source, _ = ahead("relational", spoil=BROKEN["one column short"])
    for step in range(3):
        ask_and_draw(source, step)
    (warning,) = only_client(source).log.take_warnings()
    assert warning.text == (
        "the reply to the request of step 0 cannot be used: entities has the shape (12, 4), where (12, 5) was requested"
    )


def raising_from(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``relational`` raise from a step on, where a pool draws."""
    draw = SOURCES["relational"].draw

    def unlucky(self: NegativeSource, queries: Queries, *given: Any) -> Negatives:
        if torch.equal(queries.anchor, some_queries(step).anchor):
            raise RuntimeError("no luck today")
        return draw(self, queries, *given)

    monkeypatch.setattr(SOURCES["relational"], "draw", unlucky)


def test_a_source_that_raises_in_a_pool_ends_the_run_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    raising_from(2, monkeypatch)
    source, _ = ahead("relational")
    for step in range(2):
        ask_and_draw(source, step)
    with pytest.raises(
        NegativePoolError, match=r"source relational, drawing .* for step 2: RuntimeError: no luck today"
    ):
        ask_and_draw(source, 2)
    assert only_client(source).take_deliveries().late == 0


def test_a_source_that_raises_where_the_fallback_was_chosen_is_counted_and_warned_of_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raising_from(2, monkeypatch)
    source, _ = ahead("relational", pool={"fallback": "corrupt"})
    for step in range(2):
        ask_and_draw(source, step)
    drawn = ask_and_draw(source, 2)
    expected = make_source("corrupt", {}, graph()).draw(some_queries(2), COUNT, torch.Generator().manual_seed(7))
    assert torch.equal(drawn.entities, expected.entities)
    for _ in range(2):  # again and again the queries of step 2
        source.prefetch([DrawRequest(moment(3), some_queries(2), COUNT, 103)])
    source.advance(moment(3))
    source.draw(some_queries(2), COUNT, torch.Generator())
    counts = only_client(source).take_deliveries()
    assert (counts.delivered, counts.failed, counts.late) == (24, 24, 0)
    assert [event.kind for event in only_client(source).log.take_warnings()] == ["failed"]


def test_an_age_below_zero_is_not_used() -> None:
    source, _ = ahead("near_miss", spoil=lambda reply: Reply(reply.entities, reply.mask, version=9))
    ask_and_draw(source, 0)
    counts = only_client(source).take_deliveries()
    assert (counts.delivered, counts.old) == (0, 12)


def test_a_late_reply_is_drawn_by_the_source_that_stands_in() -> None:
    source, _ = ahead("near_miss", pool={"fallback": "corrupt"}, spoil=late)
    drawn = ask_and_draw(source, 0)
    expected = make_source("corrupt", {}, graph()).draw(some_queries(0), COUNT, torch.Generator().manual_seed(7))
    assert torch.equal(drawn.entities, expected.entities)
    deliveries = only_client(source)
    assert deliveries.take_deliveries().late == 12
    assert deliveries.take_deliveries().late == 0, "a report starts from nothing"


def test_what_was_drawn_from_vectors_too_old_is_not_used() -> None:
    def slow(reply: Reply) -> Reply:  # by one who has not heard of later vectors
        return Reply(reply.entities, reply.mask, version=0)

    source, _ = ahead("near_miss", pool={"max_age": 2}, spoil=slow)
    for step in range(5):
        ask_and_draw(source, step)
    deliveries = only_client(source).take_deliveries()
    assert (deliveries.delivered, deliveries.old) == (3 * 12, 2 * 12)
    assert deliveries.ages == [0, 1, 2]


def test_a_full_pool_refuses_and_the_step_draws_for_itself() -> None:
    source, pools = ahead("relational", most=2)
    for step in range(4):
        source.prefetch([DrawRequest(moment(step), some_queries(step), COUNT, step)])
    assert [request.number for request in pools["0"].requests] == [0, 1]
    for step in range(4):
        ask_and_draw(source, step, asked_before=True)
    deliveries = only_client(source).take_deliveries()
    assert (deliveries.delivered, deliveries.refused) == (24, 24)
    assert not pools["0"].under_way


def test_vectors_are_fetched_for_as_many_as_are_taken_up() -> None:
    source, pools = ahead("near_miss", most=2)
    fetched: list[int] = []

    class Counting(TableModel):
        def query(self, anchor: torch.Tensor, relation: torch.Tensor) -> torch.Tensor:
            fetched.append(len(anchor))
            return super().query(anchor, relation)

    source.attach(Counting())
    source.prefetch([DrawRequest(moment(step), some_queries(step), COUNT, step) for step in range(5)])
    source.prefetch([DrawRequest(moment(step), some_queries(step), COUNT, step) for step in range(5, 9)])
    assert [request.number for request in pools["0"].requests] == [0, 1]
    assert fetched == [2 * 12]


def test_of_a_mixture_only_what_looks_at_queries_is_hosted() -> None:
    assert list(hosted_parts("mixture", MIXTURE)) == ["0.1", "0.2"]
    assert hosted_parts("uniform", {}) == {}
    source, pools = ahead("mixture", MIXTURE)
    drawn = ask_and_draw(source, 0)
    assert drawn.entities.shape == (12, COUNT)
    assert [len(pool.requests) for pool in pools.values()] == [1, 1]
    # A quarter, a half and a quarter of five negatives: so many at most of each.
    assert [pool.requests[0].count for pool in pools.values()] == [3, 2]
    assert [each.take_deliveries().delivered for each in source.pool_clients()] == [12, 12]


def test_a_mixture_asks_for_the_shares_of_the_step_that_it_asks_for() -> None:
    parts = [{"source": "uniform", "weight": 1}, {"source": "relational", "weight": [[0, 0], [0.5, 0], [1, 1]]}]
    source, pools = ahead("mixture", {"parts": parts})
    source.prefetch([DrawRequest(moment(20), some_queries(0), COUNT, 0)])
    assert not pools["0.1"].requests
    source.prefetch([DrawRequest(moment(100), some_queries(0), COUNT, 0)])
    assert [request.count for request in pools["0.1"].requests] == [3]


def test_what_was_asked_for_a_part_that_has_lost_its_weight_makes_room() -> None:
    parts = [{"source": "uniform", "weight": 1}, {"source": "relational", "weight": [[0, 1], [0.5, 0]]}]
    source, pools = ahead("mixture", {"parts": parts}, most=3)
    source.prefetch([DrawRequest(moment(step), some_queries(step), COUNT, step) for step in range(3)])
    assert sorted(pools["0.1"].under_way) == [0, 1, 2]
    ask_and_draw(source, 0, asked_before=True)
    # The time limit is nearer than the epochs said: from now on the part is not asked to draw.
    for step in (1, 2):
        source.advance(TrainingProgress(step / 4, 0.6, step))
        source.draw(some_queries(step), COUNT, torch.Generator())
    assert sorted(pools["0.1"].under_way) == [2]
    source.advance(TrainingProgress(3 / 4, 0.6, 3))
    assert pools["0.1"].room() == 3
    deliveries = only_client(source).take_deliveries()
    assert (deliveries.delivered, deliveries.late) == (12, 0)


def test_a_host_waits_for_the_shards_of_all_workers() -> None:
    model, host = TableModel(), make_server("near_miss", {"neighbours": 4}, graph(), DOT)
    source, pools = ahead("near_miss", {"neighbours": 4})
    ask_and_draw(source, 0)
    (request,) = pools["0"].requests
    rows = model.table.numpy()
    host.publish(0, 1, 2, 25, {CANDIDATES: rows[25:]})
    assert host.answer(request) is None
    host.publish(0, 0, 2, 0, {CANDIDATES: rows[:25]})
    found, expected = host.answer(request), pools["0"].host.answer(request)
    assert found is not None
    assert expected is not None
    assert np.array_equal(found.entities, expected.entities)
    assert found.version == 0


def test_a_worker_s_negatives_do_not_depend_on_when_others_ask() -> None:
    source, pools = ahead("cached", {"cache": 3, "explored": 3})
    for step in range(4):
        ask_and_draw(source, step)
    requests = pools["0"].requests
    replies = []
    for order in (requests, requests[::-1]):
        host = make_server("cached", {"cache": 3, "explored": 3}, graph(), DOT)
        host.publish(0, 0, 1, 0, {CANDIDATES: TableModel().table.numpy()})
        drawn = {}
        for of_rank_one in order:
            drawn[of_rank_one.number] = host.answer(_of_rank(of_rank_one, of_rank_one.number % 2))
        replies.append(drawn)
    # The first request of each worker finds nothing remembered, whoever came before.
    assert np.array_equal(replies[0][0].entities, _alone(requests[0]).entities)
    assert np.array_equal(replies[0][1].entities, _alone(requests[1]).entities)


def _of_rank(request: Any, rank: int) -> Any:
    return type(request)(**{**vars(request), "rank": rank})


def _alone(request: Any) -> Reply:
    host = make_server("cached", {"cache": 3, "explored": 3}, graph(), DOT)
    host.publish(0, 0, 1, 0, {CANDIDATES: TableModel().table.numpy()})
    reply = host.answer(request)
    assert reply is not None
    return reply
