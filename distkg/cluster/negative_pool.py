"""A pool of Ray actors that draw negatives ahead of time, for all workers of a run.

Actors host the sources (``negatives.host``); each worker asks them through ``ActorPool``, without ever waiting longer
than it wants. An actor that dies is restarted by Ray, one that hangs is killed, and what they owed is drawn by the worker
itself. Nothing grows: a worker has so many requests under way and no more, and one published set of vectors.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from distkg.config import RunConfig, parse_config
from distkg.data.store import Store
from distkg.negatives import TrainingGraph
from distkg.negatives.ahead import Reply, Request, hosted_parts
from distkg.negatives.host import SourceHost
from distkg.scoring import make_scorer

HANGS_AFTER_S = 10.0
"""An actor that owes a reply for so long is killed and restarted."""


class NegativeActor:
    """Hosts the sources of a run; becomes a Ray actor."""

    def __init__(self, config: dict[str, Any]) -> None:
        settings = parse_config(config, "the launched run")
        graph = TrainingGraph.of_store(Store.open(settings.data.store))
        with torch.device("meta"):
            similarity = make_scorer(settings.model).similarity
        chosen = settings.negatives
        parts = hosted_parts(chosen.source, chosen.options)
        self._hosts = {key: SourceHost(graph, *part, similarity) for key, part in parts.items()}
        self._arriving: dict[str, dict[int, list[tuple[int, NDArray[np.float32]]]]] = {key: {} for key in parts}

    def publish(self, key: str, version: int, ranks: int, first: int, rows: NDArray[np.float32]) -> None:
        """One rank's shard of the vectors of step ``version``; they count once all ranks' are here."""
        waiting = self._arriving[key]
        pieces = waiting.setdefault(version, [])
        pieces.append((first, rows))
        if len(pieces) == ranks:
            self._hosts[key].publish(version, pieces)
            self._arriving[key] = {later: held for later, held in waiting.items() if later > version}

    def draw(self, key: str, request: Request) -> Reply | None:
        return self._hosts[key].draw(request)


@dataclass
class _Asked:
    reply: ray.ObjectRef
    actor: int
    since: float = field(default_factory=time.monotonic)


class ActorPool:
    """One worker's way to the actors, for one hosted source; a ``negatives.ahead.Pool``."""

    def __init__(self, actors: list[Any], key: str, rank: int, ranks: int, most_under_way: int) -> None:
        self.restarts = 0
        self._actors, self._key, self._rank, self._ranks = actors, key, rank, ranks
        self._most = most_under_way
        self._under_way: dict[int, _Asked] = {}
        self._abandoned: list[_Asked] = []
        self._lost: set[int] = set()
        self._published: tuple[int, int, ray.ObjectRef] | None = None

    def ask(self, request: Request) -> bool:
        self._look_after_abandoned()
        if len(self._under_way) + len(self._abandoned) >= self._most:
            return False
        actor = (request.number + self._rank) % len(self._actors)
        reply = self._actors[actor].draw.remote(self._key, request)
        self._under_way[request.number] = _Asked(reply, actor)
        return True

    def take(self, number: int, timeout: float | None) -> Reply | None:
        asked = self._under_way.pop(number, None)
        if asked is None:
            return None
        ready, _ = ray.wait([asked.reply], timeout=timeout)
        if not ready:
            self._abandoned.append(asked)
            return None
        return self._received(asked)

    def publish(self, version: int, first: int, rows: NDArray[np.float32]) -> None:
        self._published = version, first, ray.put(rows)
        for actor in range(len(self._actors)):
            self._send_published(actor)

    def _received(self, asked: _Asked) -> Reply | None:
        try:
            reply: Reply | None = ray.get(asked.reply)
        except ray.exceptions.RayError:
            self._note_loss(asked.actor)
            return None
        if asked.actor in self._lost:
            self._lost.discard(asked.actor)
            self.restarts += 1
        return reply

    def _note_loss(self, actor: int) -> None:
        """Its successor begins with nothing: it needs the vectors again."""
        if actor not in self._lost:
            self._lost.add(actor)
            self._send_published(actor)

    def _send_published(self, actor: int) -> None:
        if self._published is not None:
            version, first, rows = self._published
            self._actors[actor].publish.remote(self._key, version, self._ranks, first, rows)

    def _look_after_abandoned(self) -> None:
        """Forget late replies as they come in; restart who owes one for too long."""
        still = []
        for asked in self._abandoned:
            ready, _ = ray.wait([asked.reply], timeout=0)
            if ready:
                self._received(asked)
            elif time.monotonic() - asked.since > HANGS_AFTER_S:
                self._restart(asked.actor)
            else:
                still.append(asked)
        self._abandoned = still

    def _restart(self, actor: int) -> None:
        if actor not in self._lost:
            ray.kill(self._actors[actor], no_restart=False)
            self._note_loss(actor)


def actor_names(config: RunConfig, run: str) -> list[str]:
    """Names by which workers find the actors of a run."""
    return [f"negatives of {run}, {place}" for place in range(config.negatives.pool.actors)]


@contextmanager
def negative_actors(config: RunConfig, run: str) -> Iterator[None]:
    """The actors of a run, for as long as it lasts; none where the configuration asks for none."""
    pool, made = config.negatives.pool, []
    for name in actor_names(config, run):
        actor = ray.remote(NegativeActor).options(
            name=name,
            num_cpus=pool.cpus_per_actor,
            num_gpus=pool.gpus_per_actor,
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy="SPREAD" if pool.apart else "DEFAULT",
        )
        made.append(actor.remote(config.model_dump()))
    try:
        yield
    finally:
        for handle in made:
            ray.kill(handle)


def pool_of_worker(config: RunConfig, run: str, rank: int, ranks: int) -> Any:
    """Key of a hosted source → this worker's ``ActorPool`` for it; None where there are no actors."""
    names = actor_names(config, run)
    if not names:
        return None
    actors = [ray.get_actor(name) for name in names]
    return lambda key: ActorPool(actors, key, rank, ranks, 2 * config.negatives.pool.depth)
