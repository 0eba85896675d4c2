"""Tables of relations that are alike: against slow cosines, when they are asked for, and what their draws count as."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_process_pool import InProcessPool, in_process
from torch import Tensor

from distkg.config import PoolConfig
from distkg.kernels.scores.similarity import DOT
from distkg.negatives import NegativeSource, Queries, TrainingGraph, TrainingProgress, make_source
from distkg.negatives.kmas.relation_miner import RelationMiner, TableRequest, usable_relations
from distkg.negatives.kmas.relation_similarity import AlikeOptions, RelationTable, table_of
from distkg.negatives.kmas.similarity_cache import SimilarityCache
from distkg.negatives.prefetch.pool_client import RELATIONS, PoolClient
from distkg.negatives.prefetch.prefetched_source import hosted_parts, make_hosted_source
from distkg.negatives.prefetch.source_server import SourceServer
from distkg.sharding.ranks import Ranks

VECTORS = [[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.2]]
TABLE = RelationTable(0, np.array([[1, 0], [0, 1]], np.int32), np.array([[0.75, 0.25], [0.5, 0.5]], np.float32))


def graph() -> TrainingGraph:
    rows = np.random.default_rng(5).integers(0, [20, 4, 20], (50, 3))
    return TrainingGraph.of_triples(np.unique(rows, axis=0), 20, 4)


class RelationsOnly:
    """A model of which relations alone are looked at."""

    def __init__(self) -> None:
        self.ranks, self.similarity, self.entities, self.first = Ranks.single(), DOT, 20, 0
        self.vectors = torch.tensor(VECTORS)

    def relations(self) -> Tensor:
        return self.vectors


def slow_chances(
    vectors: list[list[float]], own: int, usable: list[bool], count: int, temperature: float
) -> list[float]:
    """Chances of all relations without a bound for the own one, by plain loops."""

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    alike = {r: cosine(vectors[own], vectors[r]) for r in range(len(vectors)) if usable[r]}
    best = sorted(alike, key=lambda r: -alike[r])[:count]
    whole = sum(math.exp(alike[r] / temperature) for r in best)
    return [math.exp(alike[r] / temperature) / whole if r in best else 0.0 for r in range(len(vectors))]


@given(
    vectors=st.lists(st.lists(st.integers(1, 50), min_size=3, max_size=3), min_size=1, max_size=6),
    signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=18, max_size=18),
    unused=st.integers(0, 5),
    count=st.integers(1, 7),
)
def test_a_table_is_that_of_slow_cosines(vectors: list[list[int]], signs: list[float], unused: int, count: int) -> None:
    rows = [[x * signs[3 * i + j] for j, x in enumerate(row)] for i, row in enumerate(vectors)]
    usable = [r != unused for r in range(len(rows))]
    options = AlikeOptions(relations=count, temperature=0.3, self_share=1.0)
    table = table_of(torch.tensor(rows), torch.tensor(usable), options, version=7)
    assert table.version == 7
    assert table.relations.dtype == np.int32
    assert table.relations.shape == (len(rows), min(count, len(rows)))
    for own in range(len(rows)):
        expected = slow_chances(rows, own, usable, count, 0.3)
        found = np.zeros(len(rows))
        np.add.at(found, table.relations[own], table.chances[own])
        # Of equals that do not all find a place, any may be taken.
        assert sorted(found) == pytest.approx(sorted(expected), abs=1e-4)


def test_relations_that_have_facts() -> None:
    found = usable_relations(TrainingGraph.of_triples(np.array([[0, 2, 1], [1, 0, 2]]), 3, 4))
    assert found.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    "wrong",
    [
        {"relations": np.array([[1, 0]], np.int32)},
        {"relations": np.array([[1, 2], [0, 1]], np.int32)},
        {"relations": np.array([[1, -1], [0, 1]], np.int32)},
        {"relations": np.array([[1.0, 0.0], [0.0, 1.0]])},
        {"chances": np.array([[0.5, np.nan], [0.5, 0.5]], np.float32)},
        {"chances": np.array([[1.5, -0.5], [0.5, 0.5]], np.float32)},
        {"chances": np.array([[0.5], [0.5]], np.float32)},
    ],
)
def test_a_table_is_not_taken_on_trust(wrong: dict[str, Any]) -> None:
    assert TABLE.fault(2) is None
    assert TABLE.fault(3) is not None
    assert replace(TABLE, **wrong).fault(2) is not None


class OneTable:
    """A ``HostedSource`` whose table is the same in every version, whatever was published."""

    action = "comparing relations"

    def publish(self, *piece: Any) -> None:
        pass

    def reply(self, request: TableRequest) -> RelationTable:
        return replace(TABLE, version=request.number)


def cache(
    refresh: int = 5, late: int | None = 0, sync: bool = False, parameters: Any = dict, **faults: Any
) -> tuple[SimilarityCache, InProcessPool]:
    pool = InProcessPool(SourceServer(OneTable()), late=late, **faults)  # type: ignore[arg-type]
    return SimilarityCache(pool, PoolConfig(max_age=7, sync=sync), 2, refresh, parameters), pool


def counts(found: SimilarityCache) -> tuple[int, int, int, int, list[int]]:
    came = found.client.take_deliveries()
    return came.delivered, came.late, came.old, came.broken, came.ages


def test_relations_are_compared_every_so_many_steps_and_weights_travel_then_alone() -> None:
    copies: list[int] = []

    def copy() -> dict[str, np.ndarray]:
        copies.append(len(copies))
        return {"w": np.full(2, copies[-1], np.float32)}

    found, pool = cache(refresh=5, parameters=copy)
    for step in range(12):
        found.refresh(step)
    assert [request.number for request in pool.requests] == [0, 5, 10] == pool.published
    assert [arrays["w"].tolist() for arrays in pool.arrays] == [[0, 0], [1, 1], [2, 2]]
    # A training that goes back to a checkpoint begins anew.
    found.refresh(3)
    assert (pool.requests[-1].number, pool.published[-1]) == (3, 3)


def test_nothing_is_asked_while_a_table_is_under_way() -> None:
    found, pool = cache(refresh=2, late=5)
    for step in range(10):
        found.refresh(step)
    # Looked for in vain at steps 0 … 4, there at 5; asked again at 6.
    assert [request.number for request in pool.requests] == [0, 6]


def test_what_comes_late_is_old_or_is_broken_is_counted_and_not_used() -> None:
    found, _ = cache(refresh=100, late=2)
    seen = []
    for step in range(10):
        found.refresh(step)
        seen.append(found.latest(step, queries=3) is not None)
    # Version 0 is there from step 2 on, and older than 7 steps from 8 on.
    assert seen == [False] * 2 + [True] * 6 + [False] * 2
    assert counts(found) == (18, 6, 6, 0, [2, 3, 4, 5, 6, 7])
    assert counts(found) == (0, 0, 0, 0, [])
    broken, _ = cache(spoil=lambda table: replace(table, chances=table.chances * np.nan))
    broken.refresh(0)
    assert broken.latest(0, queries=3) is None
    assert counts(broken) == (0, 0, 0, 3, [])
    (warning,) = broken.client.log.take_warnings()
    assert warning.text.startswith("the table of similar relations of step 0 is broken: chances holds")


def test_what_an_actor_owed_is_asked_again_with_the_weights_of_the_next_step() -> None:
    losses = iter(["lost", "lost"])
    found, pool = cache(refresh=100, spoil=lambda table: next(losses, table))
    for step in range(5):
        found.refresh(step)
        found.latest(step, queries=1)
    assert [request.number for request in pool.requests] == [0, 1, 2] == pool.published
    assert counts(found) == (3, 2, 0, 0, [0, 1, 2])
    losses = iter(["lost", "lost"])
    found, pool = cache(sync=True, spoil=lambda table: next(losses, table))
    found.refresh(7)
    assert [request.number for request in pool.requests] == [7, 7, 7], "in sync at once, and with the same weights"
    assert found.latest(7, queries=1) is not None


def test_without_any_actor_left_draws_count_as_failed() -> None:
    found, pool = cache(refresh=100, sync=True, spoil=lambda table: "lost")
    pool.gone = True
    found.refresh(0)
    assert found.latest(0, queries=3) is None
    assert found.client.take_deliveries().failed == 3


def test_a_table_of_a_later_step_is_not_used() -> None:
    found, _ = cache()
    found.refresh(4)
    assert found.latest(3, queries=1) is None
    assert counts(found) == (0, 0, 1, 0, [])


def test_in_sync_every_table_is_there_at_once() -> None:
    found, _ = cache(refresh=3, late=None, sync=True)
    for step in range(7):
        found.refresh(step)
        alike = found.latest(step, queries=1)
        assert alike is not None
        assert alike[torch.tensor([1, 0])].relations.tolist() == [[0, 1], [1, 0]]
        assert alike[torch.tensor([1, 0])].chances.tolist() == [[0.5, 0.5], [0.75, 0.25]]
    assert counts(found) == (7, 0, 0, 0, [0, 1, 2, 0, 1, 2, 0])


OPTIONS = {"schedule": "constant", "most": 0.5, "refresh_steps": 4, "temperature": 0.5}


def mined(late: int | None = 0, **options: Any) -> tuple[NegativeSource, InProcessPool]:
    chosen = {**OPTIONS, **options}
    pool_of, pools = in_process(graph(), "kmas", chosen, late=late)
    found = make_hosted_source("kmas", chosen, graph(), pool_of, PoolConfig())
    found.attach(RelationsOnly())  # type: ignore[arg-type]
    return found, pools["0"]


def in_step() -> NegativeSource:
    made = make_source("kmas", OPTIONS, graph())
    made.attach(RelationsOnly())  # type: ignore[arg-type]
    return made


def client_of(source: NegativeSource) -> PoolClient[Any, Any]:
    (client,) = source.pool_clients()
    return client


@pytest.mark.parametrize("late", [0, None])
def test_draws_by_a_table_and_in_the_step_are_the_same_while_weights_are(late: int | None) -> None:
    source, pool = mined(late)
    queries = Queries(*torch.from_numpy(graph().queries()).T.contiguous())
    for step in range(6):
        drawn = []
        for each in (source, in_step()):
            each.advance(TrainingProgress(step=step))
            drawn.append(each.draw(queries, 6, torch.Generator().manual_seed(step)).entities)
        assert torch.equal(*drawn)
    came = client_of(source).take_deliveries()
    share = (came.delivered, came.late) if late is None else (came.late, came.delivered)
    assert share == (0, 6 * len(queries))
    assert pool.published == ([0] if late is None else [0, 4])
    assert [list(arrays) for arrays in pool.arrays] == [["relations"]] * len(pool.arrays)


def test_what_is_sent_does_not_change_with_the_model() -> None:
    source, pool = mined()
    model = RelationsOnly()
    source.attach(model)  # type: ignore[arg-type]
    source.advance(TrainingProgress())
    model.vectors += 1
    assert pool.arrays[0]["relations"].tolist() == [[pytest.approx(x) for x in row] for row in VECTORS]


def test_steps_without_hard_negatives_count_nothing() -> None:
    source, _ = mined(schedule="rise_and_fall", warm_up=0.5, peak=0.9)
    queries = Queries(*torch.from_numpy(graph().queries()).T.contiguous())
    source.advance(TrainingProgress(progress=0.4))
    source.draw(queries, 6, torch.Generator())
    assert client_of(source).take_deliveries().delivered == 0


def test_a_part_of_a_mixture_is_mined_beside_those_that_are_drawn() -> None:
    parts = {"parts": [{"source": "uniform"}, {"source": "kmas"}, {"source": "corrupt"}]}
    assert {key: name for key, (name, _) in hosted_parts("mixture", parts).items()} == {"0.1": "kmas", "0.2": "corrupt"}
    pool_of, pools = in_process(graph(), "mixture", parts)
    found = make_hosted_source("mixture", parts, graph(), pool_of, PoolConfig())
    assert [client.pool for client in found.pool_clients()] == [pools["0.1"], pools["0.2"]]
    assert [part.hard_first for part in found.parts()] == [False, True, False]


def test_what_several_workers_ask_for_is_compared_once() -> None:
    versions: list[int] = []

    def vectors_of(version: int, arrays: Any) -> Tensor:
        versions.append(version)
        return torch.from_numpy(arrays[RELATIONS])

    miner = RelationMiner(graph(), AlikeOptions(), vectors_of)
    ones, others = np.array(VECTORS, np.float32), np.array(VECTORS[::-1], np.float32)
    assert miner.reply(TableRequest(3, 0)) is None, "nothing was published"

    def ask(rank: int, version: int, rows: np.ndarray) -> RelationTable | None:
        miner.publish(version, rank, 2, 0, {RELATIONS: rows.copy()})
        return miner.reply(TableRequest(version, rank))

    first = ask(0, 3, ones)
    assert ask(1, 3, ones) is first
    assert versions == [3]
    # One worker may be a table ahead of another, which then gets its own.
    assert ask(0, 4, ones) is not first
    assert miner.reply(TableRequest(3, 1)) is first
    # A training that went back may come to the same step with other weights.
    assert ask(1, 4, others) is not miner.reply(TableRequest(4, 0))
    assert versions == [3, 4, 4]


def test_a_successor_of_the_group_of_workers_finds_nothing_published() -> None:
    server = SourceServer(RelationMiner.of_vectors("kmas", {}, graph()))
    server.publish(3, 0, 1, 0, {RELATIONS: np.array(VECTORS, np.float32)}, "former")
    assert isinstance(server.answer(TableRequest(3, 0), "former"), RelationTable)
    assert server.answer(TableRequest(3, 0), "present") is None
    assert server.answer(TableRequest(3, 0), "former") is None
