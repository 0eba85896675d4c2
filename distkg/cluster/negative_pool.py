"""A pool of Ray actors that draw negatives ahead of time, for all workers of a run.

Actors host the sources (``negatives.host``); each worker asks them through ``ActorPool``, and never waits longer than
it wants. An actor that dies is restarted by Ray, one that hangs is killed, and what they owed is drawn by the worker
itself. Nothing grows: a worker has so many requests under way and no more, fewer where actors are slow, and one
published set of vectors.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from distkg.cluster.mining import ActorMiner, mines_of
from distkg.cluster.session import actor_resources
from distkg.cluster.shared_graphs import Graphs
from distkg.config import PoolConfig, RunConfig, parse_config
from distkg.data.store import Store
from distkg.negatives import SOURCES, TrainingGraph
from distkg.negatives.ahead import PoolOf, hosted_parts
from distkg.negatives.alike import RelationTable
from distkg.negatives.host import SourceHost
from distkg.negatives.messages import Reply, Request
from distkg.negatives.mined import Mine, MinerOf, Weights
from distkg.negatives.window import Patience, RequestWindow
from distkg.scoring import make_scorer
from distkg.training.foundation_model import is_foundation

BLEND_EVERY = 32  # draws


class Process(NamedTuple):
    """Where an actor lives; another one after a restart."""

    node: str
    pid: int
    born: int


class NegativeActor:
    """Hosts the sources of a run, and compares relations for it; becomes a Ray actor."""

    def __init__(self, config: dict[str, Any], peer: str | None, place: int) -> None:
        """``peer`` is the actor that hears of what sources have learned here; None for none."""
        self._peer, self._place = peer, place
        self._draws: dict[str, int] = {}
        self._mines: dict[str, Mine] | None = None
        self._settings = parse_config(config, "the launched run")
        torch.set_num_threads(actor_threads(self._settings.negatives.pool))
        self._process = Process(ray.get_runtime_context().get_node_id(), os.getpid(), time.time_ns())

    @cached_property
    def _hosts(self) -> dict[str, SourceHost]:
        # Not made in __init__: Ray hands on what a method raises, but of that only the text.
        chosen = self._settings.negatives
        parts = hosted_parts(chosen.source, chosen.options)
        drawn = {key: part for key, part in parts.items() if SOURCES[part[0]].looks_at != "relations"}
        if not drawn:
            return {}
        graph = TrainingGraph.of_store(Store.open(self._settings.data.store))
        with torch.device("meta"):
            similarity = make_scorer(self._settings.model).similarity
        device = "cuda" if chosen.pool.gpus_per_actor and torch.cuda.is_available() else "cpu"
        return {key: SourceHost(graph, *part, similarity, device) for key, part in drawn.items()}

    def ready(self, graphs: Graphs) -> list[str]:
        """Keys of what it hosts and compares for, once that is made; raises what making it raised."""
        return [*self._hosts, *self._mines_of(graphs)]

    def mine(
        self, key: str, version: int, weights: Weights, graphs: Graphs
    ) -> tuple[Process, dict[str, RelationTable]]:
        """Where this actor lives, and tables as of ``Mine``."""
        return self._process, dict(self._mines_of(graphs)[key](version, weights))

    def _mines_of(self, graphs: Graphs) -> dict[str, Mine]:
        if self._mines is None:
            self._mines = mines_of(self._settings, graphs, self._place)
        return self._mines

    def publish(self, key: str, version: int, rank: int, ranks: int, first: int, rows: NDArray[np.float32]) -> None:
        """As ``SourceHost.publish``."""
        self._hosts[key].publish(version, rank, ranks, first, rows)

    def draw(self, key: str, requests: Sequence[Request]) -> tuple[Process, list[Reply | None]]:
        """Where this actor lives, and the replies as of ``SourceHost.draw``."""
        return self._process, [self._draw(key, request) for request in requests]

    def _draw(self, key: str, request: Request) -> Reply | None:
        reply = self._hosts[key].draw(request)
        self._draws[key] = self._draws.get(key, 0) + 1
        if self._peer is not None and self._draws[key] % BLEND_EVERY == 0:
            self._tell_peer(self._peer, key)
        return reply

    def blend(self, key: str, weights: dict[str, NDArray[np.float32]]) -> None:
        """As ``SourceHost.blend``."""
        self._hosts[key].blend(weights)

    def _tell_peer(self, peer: str, key: str) -> None:
        """Round a ring of actors, so that all come to the same mean; nobody waits for it."""
        weights = self._hosts[key].weights()
        if weights:
            with suppress(ValueError):  # it is being restarted
                ray.get_actor(peer).blend.remote(key, weights)


@dataclass
class _Message:
    """Requests that were sent together.

    Attributes:
        numbers: of the requests, rising.
        here: whether the replies have come, or are lost.
        replies: by number, once they are here.
    """

    arrival: ray.ObjectRef
    actor: int
    numbers: list[int]
    since: float = field(default_factory=time.monotonic)
    here: bool = False
    replies: dict[int, Reply | None] = field(default_factory=dict)


class ActorPool:
    """One worker's way to the actors, for one hosted source; a ``negatives.ahead.Pool``."""

    def __init__(self, actors: list[Any], key: str, rank: int, ranks: int, how: PoolConfig) -> None:
        self.restarts = 0
        self._actors, self._key, self._rank, self._ranks = actors, key, rank, ranks
        # One for each actor: what one owes takes nothing from the others.
        self._windows = [RequestWindow(-(-2 * how.depth // len(actors))) for _ in actors]
        self._patience, self._hung_after = Patience(), how.hung_after
        self._under_way: dict[int, _Message] = {}
        self._abandoned: list[_Message] = []
        self._next = rank  # actor to be asked
        self._lost: set[int] = set()
        self._processes: dict[int, Process] = {}
        self._published: tuple[int, int, ray.ObjectRef] | None = None

    def room(self) -> int:
        self._look_after_abandoned()
        return sum(self._room_of_each())

    def _room_of_each(self) -> list[int]:
        owed = Counter(message.actor for message in self._under_way.values())
        for message in self._abandoned:
            owed[message.actor] += len(message.numbers)
        return [max(0, len(window) - owed[actor]) for actor, window in enumerate(self._windows)]

    def ask(self, requests: Sequence[Request]) -> int:
        left, room = list(requests), self._room_of_each()
        for _ in self._actors:
            actor, self._next = self._next % len(self._actors), self._next + 1
            sent = left[: room[actor]]
            left = left[len(sent) :]
            if sent:
                self._send(actor, sent)
            if not left:
                break
        return len(requests) - len(left)

    def _send(self, actor: int, requests: list[Request]) -> None:
        numbers = [request.number for request in requests]
        message = _Message(self._actors[actor].draw.remote(self._key, requests), actor, numbers)
        self._under_way |= dict.fromkeys(numbers, message)
        self._windows[actor].asked(numbers[-1])

    def take(self, number: int, timeout: float | None) -> Reply | None:
        message = self._under_way.pop(number, None)
        if message is None:
            return None
        if self._is_here(message, 0):
            if number in message.replies:  # else it was lost with its actor
                self._windows[message.actor].in_time()
        elif timeout is None:  # nothing is ever late
            self._is_here(message, None)
        else:
            self._windows[message.actor].late(number)
            if self._patience.waits():
                self._patience.learn(self._is_here(message, timeout))
        return self._reply_or_abandon(message, number)

    def forget(self, number: int) -> None:
        message = self._under_way.pop(number, None)
        if message is not None:
            self._is_here(message, 0)
            self._reply_or_abandon(message, number)

    def _reply_or_abandon(self, message: _Message, number: int) -> Reply | None:
        """The reply where it is here; a message of which nothing more is wanted is looked after until it is."""
        if message.here:
            return message.replies.pop(number, None)
        if number == message.numbers[-1]:
            self._abandoned.append(message)
        return None

    def publish(self, version: int, first: int, rows: NDArray[np.float32], *, wait: bool) -> None:
        self._published = version, first, ray.put(rows)
        sent = [self._send_published(actor) for actor in range(len(self._actors))]
        if wait:
            ray.get([arrival for arrival in sent if arrival is not None])

    def _is_here(self, message: _Message, timeout: float | None) -> bool:
        """Whether the replies have come, or never will; they are then in the message."""
        while not message.here:
            ready, _ = ray.wait([message.arrival], timeout=self._hung_after if timeout is None else timeout)
            if ready:
                message.here, message.replies = True, self._received(message)
            elif timeout is None:
                self._restart_if_hung(message)
            else:
                return False
        return True

    def _received(self, message: _Message) -> dict[int, Reply | None]:
        try:
            process, replies = ray.get(message.arrival)
        except ray.exceptions.RayError:
            self._lost.add(message.actor)
            return {}
        self._lost.discard(message.actor)
        if self._processes.setdefault(message.actor, process) != process:
            # A successor begins with nothing: it needs the vectors again.
            self._processes[message.actor] = process
            self.restarts += 1
            self._send_published(message.actor)
        return dict(zip(message.numbers, replies, strict=True))

    def _send_published(self, actor: int) -> ray.ObjectRef | None:
        if self._published is None:
            return None
        version, first, rows = self._published
        arrival: ray.ObjectRef = self._actors[actor].publish.remote(
            self._key, version, self._rank, self._ranks, first, rows
        )
        return arrival

    def _look_after_abandoned(self) -> None:
        """Forget late replies as they come in; restart who owes one for too long."""
        self._abandoned = [message for message in self._abandoned if not self._is_here(message, 0)]
        for message in self._abandoned:
            self._restart_if_hung(message)

    def _restart_if_hung(self, message: _Message) -> None:
        """One that was killed already owes nothing: it is on its way back, and its replies fail."""
        actor = message.actor
        hung = actor not in self._lost and time.monotonic() - message.since > self._hung_after
        if hung and actor in self._processes:
            self._lost.add(actor)
            process = self._processes[actor]
            there = NodeAffinitySchedulingStrategy(process.node, soft=False)
            _kill.options(scheduling_strategy=there).remote(process.pid)


@ray.remote(num_cpus=0)
def _kill(pid: int) -> None:
    """For ``ray.kill`` asks the process itself, which one that is stopped does not hear."""
    os.kill(pid, signal.SIGKILL)


def actor_threads(pool: PoolConfig) -> int:
    """Threads of one actor: its CPUs, at least one."""
    return max(1, math.floor(pool.cpus_per_actor))


def actor_names(config: RunConfig, run: str) -> list[str]:
    """Names by which workers find the actors of a run; empty where nothing is drawn ahead of time."""
    return [f"negatives of {run}, {place}" for place in range(config.negatives.pool.actors)]


@contextmanager
def negative_actors(config: RunConfig, run: str, graphs: Graphs) -> Iterator[None]:
    """The actors of a run, for as long as it lasts; none where the configuration asks for none.

    ``graphs`` are those of a foundation model, as of ``share_graphs``.

    Raises:
        SourceError: the graph lacks what a source needs.
    """
    names, pool = actor_names(config, run), config.negatives.pool
    if not names:
        yield
        return
    # A group of their own: Ray Train makes that of its workers itself, and lets nothing else in.
    group = placement_group([actor_resources(pool)] * len(names), strategy=pool.placement.upper())
    try:
        made = [_start_actor(config, names, group, place) for place in range(len(names))]
        try:
            ray.get([actor.ready.remote(graphs) for actor in made])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        yield
    finally:
        remove_placement_group(group)


def _start_actor(config: RunConfig, names: list[str], group: Any, place: int) -> Any:
    # In sync nothing may depend on which actor is ahead: each learns for itself.
    peer = None if len(names) == 1 or config.negatives.pool.sync else names[(place + 1) % len(names)]
    pool, threads = config.negatives.pool, str(actor_threads(config.negatives.pool))
    options = ray.remote(NegativeActor).options(
        name=names[place],
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor,
        max_restarts=-1,
        max_task_retries=0,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=place),
        runtime_env={"env_vars": {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}},
    )
    return options.remote(config.model_dump(), peer, place)


def actors_of_worker(
    config: RunConfig, run: str, rank: int, ranks: int, graphs: Graphs
) -> tuple[PoolOf | None, MinerOf | None]:
    """Key of a hosted source → this worker's ways to its actors; None where nothing is drawn ahead of time."""
    actors = [ray.get_actor(name) for name in actor_names(config, run)]
    if not actors:
        return None, None
    # The relations of one graph are compared by one actor, those of several by all.
    miners = actors if is_foundation(config) else actors[:1]
    pool = config.negatives.pool
    return lambda key: ActorPool(actors, key, rank, ranks, pool), lambda key: ActorMiner(miners, key, graphs)
