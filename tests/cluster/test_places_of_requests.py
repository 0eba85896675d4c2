"""Which places requests take, and when they give them back; Ray itself is not started here."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distkg.cluster.sampling import actor_link
from distkg.cluster.sampling.actor_link import ActorLink, ActorProcess
from distkg.cluster.sampling.negative_pool import ActorPool
from distkg.config import PoolConfig
from distkg.negatives import TrainingProgress
from distkg.negatives.prefetch.messages import Reply, Request

PROCESS = ActorProcess("node", 1, 1)


class Message(int):
    """Number of a call."""

    def future(self) -> None:
        """Fetch nothing: all results are on this node."""


class FakeRay:
    """An actor whose replies arrive when the test says so."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.arrived: set[int] = set()
        self.actor = SimpleNamespace(draw=SimpleNamespace(remote=self._draw))

    def _draw(self, key: str, incarnation: str, requests: Sequence[Request], graphs: Any) -> int:
        self.sent.append([request.number for request in requests])
        return Message(len(self.sent) - 1)

    def wait(self, messages: list[int], timeout: float | None) -> tuple[list[int], list[int]]:
        here = [message for message in messages if message in self.arrived]
        return here, [message for message in messages if message not in here]

    def get(self, message: int) -> tuple[ActorProcess, list[Reply]]:
        return PROCESS, [Reply(np.array([[number]]), None, 0) for number in self.sent[message]]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(actor_link, "ray", fake)
    return fake


def pool(ray: FakeRay) -> ActorPool:
    return ActorPool([ActorLink(ray.actor, 0, 60.0, {})], "0", 0, 1, PoolConfig(actors=1, depth=2))  # four places


def request(number: int) -> Request:
    return Request(number, 0, np.zeros((1, 3), np.int64), 1, 0, TrainingProgress(step=number), None, None, -1)


def number_of(reply: Any) -> int:
    return int(reply.entities[0, 0])


def test_what_is_forgotten_gives_its_place_back_once_the_actor_has_done_with_it(ray: FakeRay) -> None:
    asked = pool(ray)
    assert asked.ask([request(number) for number in range(6)]) == 4
    assert asked.room() == 0
    ray.arrived.add(0)
    assert number_of(asked.take(0, 0.0)) == 0
    for number in (1, 2, 3):
        asked.forget(number)
    assert asked.room() == 4
    assert asked.take(2, 0.0) is None


def test_what_is_forgotten_before_it_is_drawn_keeps_the_actor_busy_until_then(ray: FakeRay) -> None:
    asked = pool(ray)
    asked.ask([request(number) for number in range(4)])
    for number in range(4):
        asked.forget(number)
    assert asked.room() == 0
    ray.arrived.add(0)
    assert asked.room() == 4, "and nobody was late, as nobody waited"
