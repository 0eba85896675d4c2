"""Sources that serve requests: what they return wrong is found out, and groups of workers are kept apart."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from distkg.kernels.scores.similarity import DOT
from distkg.negatives import SOURCES, GeneratedNegatives, Negatives, TrainingGraph, TrainingProgress
from distkg.negatives.prefetch.messages import Reply, Request
from distkg.negatives.prefetch.pool_client import CANDIDATES
from distkg.negatives.prefetch.pool_events import PoolEvent
from distkg.negatives.prefetch.source_server import SourceServer, make_server

ENTITIES, RELATIONS, QUERIES, COUNT = 40, 3, 6, 5
ROWS = np.random.default_rng(1).standard_normal((ENTITIES, 4)).astype(np.float32)
OTHER_ROWS = np.random.default_rng(2).standard_normal((ENTITIES, 4)).astype(np.float32)


def graph() -> TrainingGraph:
    rows = np.random.default_rng(0).integers(0, [ENTITIES, RELATIONS, ENTITIES], (150, 3))
    return TrainingGraph.of_triples(np.unique(rows, axis=0), ENTITIES, RELATIONS)


def request(number: int = 3, rank: int = 0) -> Request:
    vectors = np.random.default_rng(5).standard_normal((QUERIES, 4)).astype(np.float32)
    queries = graph().queries()[:QUERIES]
    return Request(number, rank, queries, COUNT, 11, TrainingProgress(step=number), vectors, None, 0)


def host(name: str = "near_miss", options: dict[str, Any] | None = None) -> SourceServer[Any, Any]:
    return make_server(name, {"neighbours": 4} if options is None else options, graph(), DOT)


def candidates(rows: np.ndarray) -> dict[str, np.ndarray]:
    return {CANDIDATES: rows}


def published(rows: np.ndarray, incarnation: str = "") -> SourceServer[Any, Any]:
    made = host()
    made.publish(0, 0, 1, 0, candidates(rows), incarnation)
    return made


def entities_of(reply: Reply | PoolEvent | None) -> list[list[int]]:
    assert isinstance(reply, Reply), reply
    found: list[list[int]] = reply.entities.tolist()
    return found


def with_ids(change: Callable[[torch.Tensor], Any]) -> Callable[[Negatives], Any]:
    return lambda drawn: Negatives(change(drawn.entities))


def made(**changes: Any) -> Callable[[Negatives], Any]:
    parts = {
        "entities": None,
        "vectors": torch.zeros(QUERIES, 2, 4),
        "mask": torch.zeros(QUERIES, 2, dtype=torch.bool),
        "band": torch.zeros(QUERIES, dtype=torch.int64),
        "growth": torch.ones(QUERIES),
        "weight": 1.0,
    }
    return lambda drawn: Negatives(drawn.entities, None, GeneratedNegatives(**{**parts, **changes}))


WRONG: dict[str, tuple[Callable[[Negatives], Any], str]] = {
    "too few": (with_ids(lambda ids: ids[:, 1:]), "entities has the shape (6, 4), where (6, 5) was requested"),
    "too many": (with_ids(lambda ids: ids.repeat(1, 2)), "entities has the shape (6, 10), where (6, 5) was requested"),
    "of other queries": (with_ids(lambda ids: ids[1:]), "entities has the shape (5, 5), where (6, 5) was requested"),
    "no such entity": (with_ids(lambda ids: ids + 40), "where the graph has the entities 0 to 39"),
    "below zero": (with_ids(lambda ids: ids - 40), "where the graph has the entities 0 to 39"),
    "beyond 32 bits": (with_ids(lambda ids: ids + 2**32), "where the graph has the entities 0 to 39"),
    "floats": (with_ids(lambda ids: ids + 0.7), "entities holds float32, where integers were expected"),
    "not a number": (with_ids(lambda ids: ids * torch.nan), "entities holds float32, where integers were expected"),
    "a list": (with_ids(lambda ids: ids.tolist()), "entities is a list, where a tensor was expected"),
    "nothing": (lambda drawn: None, "a NoneType was returned, where Negatives were expected"),
    "marks": (
        lambda drawn: Negatives(drawn.entities, torch.zeros(QUERIES, dtype=torch.bool)),
        "mask has the shape (6,), where (6, 5) was requested",
    ),
    "made of NaN": (made(vectors=torch.full((QUERIES, 2, 4), torch.nan)), "made.vectors holds NaN or infinite"),
    "growth": (made(growth=torch.full((QUERIES,), torch.inf)), "made.growth holds NaN or infinite numbers"),
    "weight": (made(weight=float("nan")), "made.weight is not finite"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_differs_from_the_request_is_described(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, message = WRONG[fault]
    serving, draw = published(ROWS), SOURCES["near_miss"].draw
    monkeypatch.setattr(SOURCES["near_miss"], "draw", lambda self, *given: spoil(draw(self, *given)))
    event = serving.answer(request())
    assert isinstance(event, PoolEvent)
    assert event.kind == "broken"
    assert event.text.startswith("source near_miss, drawing negatives for step 3: ")
    assert message in event.text


def test_what_a_source_raises_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*arguments: Any) -> Negatives:
        raise IndexError("row 7 of 5")

    serving = published(ROWS)
    monkeypatch.setattr(SOURCES["near_miss"], "draw", draw)
    event = serving.answer(request())
    assert isinstance(event, PoolEvent)
    assert event.kind == "failed"
    assert "source near_miss, drawing negatives for step 3: IndexError: row 7 of 5 (test_source_server.py" in event.text


def test_pieces_of_a_former_group_are_not_mixed_with_those_of_its_successor() -> None:
    expected = entities_of(published(OTHER_ROWS).answer(request()))
    assert expected != entities_of(published(ROWS).answer(request()))
    serving = host()
    serving.publish(
        7, 0, 2, 0, candidates(ROWS[:25]), "former"
    )  # and before its other worker has published, the group is replaced
    serving.publish(7, 1, 2, 25, candidates(OTHER_ROWS[25:]), "present")
    assert serving.answer(request(), "present") is None
    serving.publish(7, 0, 2, 0, candidates(OTHER_ROWS[:25]), "present")
    assert entities_of(serving.answer(request(), "present")) == expected


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_successor_may_have_another_number_of_workers_and_stand_at_an_earlier_step(ranks: int) -> None:
    expected = entities_of(published(OTHER_ROWS).answer(request()))
    serving = host()
    for rank, first in enumerate((0, 25)):
        serving.publish(40, rank, 2, first, candidates(ROWS[first : first + 25]), "former")
    serving.publish(60, 1, 2, 25, candidates(ROWS[25:]), "former")
    bounds = np.linspace(0, ENTITIES, ranks + 1).astype(int)
    for rank, (first, last) in enumerate(pairwise(bounds)):
        assert serving.answer(request(), "present") is None
        serving.publish(20, rank, ranks, int(first), candidates(OTHER_ROWS[first:last]), "present")
    reply = serving.answer(request(), "present")
    assert entities_of(reply) == expected
    assert isinstance(reply, Reply)
    assert reply.version == 20
    # What arrives late from the former group changes nothing, and is not answered.
    for rank, first in enumerate((0, 25)):
        serving.publish(80, rank, 2, first, candidates(ROWS[first : first + 25]), "former")
    assert serving.answer(request(), "former") is None
    assert entities_of(serving.answer(request(), "present")) == expected


def test_a_successor_finds_nothing_remembered() -> None:
    options = {"cache": 3, "explored": 3}
    serving, fresh = host("cached", options), host("cached", options)
    for step in range(4):
        serving.publish(step, 0, 1, 0, candidates(ROWS), "former")
        serving.answer(request(step), "former")
    for each in (serving, fresh):
        each.publish(0, 0, 1, 0, candidates(ROWS), "present")
    assert entities_of(serving.answer(request(0), "present")) == entities_of(fresh.answer(request(0), "present"))


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([(0, 20), (25, 40)], "0 to 19, 25 to 39"),
        ([(0, 25), (20, 40)], "0 to 24, 20 to 39"),
        ([(0, 25), (25, 39)], "0 to 24, 25 to 38"),
    ],
)
def test_vectors_that_are_not_those_of_all_entities_are_refused(pieces: list[tuple[int, int]], message: str) -> None:
    serving = host()
    serving.publish(0, 0, 2, pieces[0][0], candidates(ROWS[slice(*pieces[0])]))
    with pytest.raises(ValueError, match=f"{message}; expected are 0 to 39"):
        serving.publish(0, 1, 2, pieces[1][0], candidates(ROWS[slice(*pieces[1])]))


def test_a_piece_that_comes_twice_does_not_stand_for_another() -> None:
    serving = host()
    for _ in range(2):
        serving.publish(0, 0, 2, 0, candidates(ROWS[:25]))
    assert serving.answer(request()) is None
    serving.publish(0, 1, 2, 25, candidates(ROWS[25:]))
    assert entities_of(serving.answer(request())) == entities_of(published(ROWS).answer(request()))
