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
from in_process_miner import InProcessMiner
from torch import Tensor

from distkg.config import PoolConfig
from distkg.kernels.scores.similarity import DOT
from distkg.negatives import Queries, TrainingGraph, TrainingProgress, make_source
from distkg.negatives.kmas.relation_miner import SimilarityCache, VectorMiner, usable_relations
from distkg.negatives.kmas.relation_similarity import AlikeOptions, RelationTable, table_of
from distkg.negatives.kmas.source import Kmas
from distkg.negatives.prefetch.prefetched_source import hosted_parts, make_hosted_source, tables_of
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
    assert TABLE.sound(2)
    assert not TABLE.sound(3)
    assert not replace(TABLE, **wrong).sound(2)


def tables(
    refresh: int = 5, late: int | None = 0, sync: bool = False, **faults: Any
) -> tuple[SimilarityCache, InProcessMiner]:
    miner = InProcessMiner(lambda version, weights: {"g": replace(TABLE, version=version)}, late=late, **faults)
    return SimilarityCache(miner, PoolConfig(max_age=7, sync=sync), refresh), miner


def counts(found: SimilarityCache) -> tuple[int, int, int, int, list[int]]:
    came = found.take_deliveries()
    return came.delivered, came.late, came.old, came.broken, came.ages


def test_relations_are_compared_every_so_many_steps_and_weights_travel_then_alone() -> None:
    found, miner = tables(refresh=5)
    copies = []
    for step in range(12):
        found.refresh(step, lambda step=step: copies.append(step) or {"w": np.full(2, step, np.float32)})  # type: ignore[misc, func-returns-value]
    assert [version for version, _ in miner.asked] == [0, 5, 10] == copies
    assert [weights["w"].tolist() for _, weights in miner.asked] == [[0, 0], [5, 5], [10, 10]]
    # A training that goes back to a checkpoint begins anew.
    found.refresh(3, dict)
    assert miner.asked[-1] == (3, {})


def test_nothing_is_asked_while_tables_are_under_way() -> None:
    found, miner = tables(refresh=2, late=5)
    for step in range(10):
        found.refresh(step, dict)
    # GatheredRows in vain at steps 0 … 4, there at 5; asked again at 6.
    assert [version for version, _ in miner.asked] == [0, 6]


def test_what_comes_late_is_old_or_is_broken_is_counted_and_not_used() -> None:
    found, _ = tables(refresh=100, late=2)
    seen = []
    for step in range(10):
        found.refresh(step, dict)
        seen.append(found.latest("g", 2, step, queries=3) is not None)
    # Version 0 is there from step 2 on, and older than 7 steps from 8 on.
    assert seen == [False] * 2 + [True] * 6 + [False] * 2
    assert counts(found) == (18, 6, 6, 0, [2, 3, 4, 5, 6, 7])
    assert counts(found) == (0, 0, 0, 0, [])
    assert found.latest("another", 2, 3, queries=4) is None
    assert counts(found) == (0, 4, 0, 0, [])
    broken, _ = tables(spoil=lambda table: replace(table, chances=table.chances * np.nan))
    broken.refresh(0, dict)
    assert broken.latest("g", 2, 0, queries=3) is None
    assert counts(broken) == (0, 0, 0, 3, [])


def test_a_table_of_a_later_step_is_not_used() -> None:
    found, _ = tables()
    found.refresh(4, dict)
    assert found.latest("g", 2, 3, queries=1) is None
    assert counts(found) == (0, 0, 1, 0, [])


def test_in_sync_every_table_is_there_at_once() -> None:
    found, _ = tables(refresh=3, late=None, sync=True)
    for step in range(7):
        found.refresh(step, dict)
        alike = found.latest("g", 2, step, queries=1)
        assert alike is not None
        assert alike[torch.tensor([1, 0])].relations.tolist() == [[0, 1], [1, 0]]
        assert alike[torch.tensor([1, 0])].chances.tolist() == [[0.5, 0.5], [0.75, 0.25]]
    assert counts(found) == (7, 0, 0, 0, [0, 1, 2, 0, 1, 2, 0])


def mined(late: int | None = 0, **options: Any) -> tuple[Kmas, InProcessMiner]:
    chosen = {"schedule": "constant", "most": 0.5, "refresh_steps": 4, "temperature": 0.5, **options}
    made = make_source("kmas", chosen, graph())
    assert isinstance(made, Kmas)
    miner = InProcessMiner(VectorMiner(graph(), made._options), late=late)
    found = make_hosted_source("kmas", chosen, graph(), lambda key: None, PoolConfig(), miner_of=lambda key: miner)  # type: ignore[arg-type, return-value]
    assert isinstance(found, Kmas)
    found.attach(RelationsOnly())  # type: ignore[arg-type]
    return found, miner


def in_step(**options: Any) -> Kmas:
    made = make_source("kmas", {"schedule": "constant", "most": 0.5, "temperature": 0.5, **options}, graph())
    assert isinstance(made, Kmas)
    made.attach(RelationsOnly())  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("late", [0, None])
def test_draws_by_a_table_and_in_the_step_are_the_same_while_weights_are(late: int | None) -> None:
    source, miner = mined(late)
    queries = Queries(*torch.from_numpy(graph().queries()).T.contiguous())
    for step in range(6):
        drawn = []
        for each in (source, in_step()):
            each.advance(TrainingProgress(step=step))
            drawn.append(each.draw(queries, 6, torch.Generator().manual_seed(step)).entities)
        assert torch.equal(*drawn)
    assert source.tables is not None
    came = source.tables.take_deliveries()
    share = (came.delivered, came.late) if late is None else (came.late, came.delivered)
    assert share == (0, 6 * len(queries))
    assert [version for version, _ in miner.asked] == ([0] if late is None else [0, 4])
    assert [list(weights) for _, weights in miner.asked] == [["relations"]] * len(miner.asked)


def test_what_is_sent_does_not_change_with_the_model() -> None:
    source, miner = mined()
    model = RelationsOnly()
    source.attach(model)  # type: ignore[arg-type]
    source.advance(TrainingProgress())
    model.vectors += 1
    assert miner.asked[0][1]["relations"].tolist() == [[pytest.approx(x) for x in row] for row in VECTORS]


def test_steps_without_hard_negatives_count_nothing() -> None:
    source, _ = mined(schedule="rise_and_fall", warm_up=0.5, peak=0.9)
    queries = Queries(*torch.from_numpy(graph().queries()).T.contiguous())
    source.advance(TrainingProgress(progress=0.4))
    source.draw(queries, 6, torch.Generator())
    assert source.tables is not None
    assert source.tables.take_deliveries().delivered == 0


def test_a_part_of_a_mixture_is_mined_beside_those_that_are_drawn() -> None:
    parts = {"parts": [{"source": "uniform"}, {"source": "kmas"}, {"source": "corrupt"}]}
    assert {key: name for key, (name, _) in hosted_parts("mixture", parts).items()} == {"0.1": "kmas", "0.2": "corrupt"}
    asked: list[str] = []

    def miner_of(key: str) -> InProcessMiner:
        asked.append(key)
        return InProcessMiner(lambda version, weights: {})

    found = make_hosted_source("mixture", parts, graph(), lambda key: None, PoolConfig(), miner_of=miner_of)  # type: ignore[arg-type, return-value]
    assert asked == ["0.1"]
    assert len(tables_of(found)) == 1
