"""Pool of Ray actors that host negative sources, for all workers of a run.

Actors hold a server for each source (``negatives.prefetch.source_server``), which draws negatives or compares
relations. Each worker sends requests through ``ActorPool``, with a timeout. Ray restarts an actor that dies, an actor
that hangs is killed, and the worker draws the missing negatives itself; an error of a source is returned as an event
(``actor_link`` distinguishes these). Memory is bounded: a worker has a limited number of pending requests, fewer if
actors are slow, and one published part of the model.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from distkg.cluster.sampling.actor_link import ActorLink, ActorProcess, Call, NoReply, take_events
from distkg.cluster.sampling.hosting import hosted_sources, make_servers
from distkg.cluster.session.placement import actor_nodes, reserve
from distkg.cluster.session.ray_session import MEMORY, actor_resources
from distkg.cluster.session.remote_errors import describe_remote_error, is_loss
from distkg.cluster.shared_graphs import SharedGraphs
from distkg.config import PoolConfig, RunConfig, parse_config
from distkg.negatives.prefetch.congestion_window import CongestionWindow, WaitPolicy
from distkg.negatives.prefetch.pool_client import Arrays, Numbered, PoolOf
from distkg.negatives.prefetch.pool_events import Missing, NegativePoolError, PoolEvent
from distkg.negatives.prefetch.source_server import SourceServer
from distkg.sharding.ranks import Ranks

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

BLEND_EVERY = 32  # draws
NOTICE_SECONDS = 60.0


class NegativeActor:
    """Ray actor that hosts negative sources of a run.

    Methods that workers call return the process of this actor, and a result or an event: Ray transfers an exception
    only if both processes can unpickle it. Every message carries the graphs, because a restarted actor has lost those
    of its predecessor.
    """

    def __init__(self, config: dict[str, Any], peer: str | None, place: int) -> None:
        """``peer`` is the name of the actor that receives the learned weights of sources; None for none."""
        # Nothing that may fail, because Ray does not restart an actor whose constructor has raised.
        self._config, self._peer, self._place = config, peer, place
        self._draws: dict[str, int] = {}
        self._servers: dict[str, SourceServer[Any, Any]] | None = None
        self._blending: ray.ObjectRef | None = None
        self._process = ActorProcess(ray.get_runtime_context().get_node_id(), os.getpid(), time.time_ns())

    @cached_property
    def _settings(self) -> RunConfig:
        settings = parse_config(self._config, "the launched run")
        torch.set_num_threads(actor_threads(settings.negatives.pool))
        return settings

    def _servers_of(self, graphs: SharedGraphs) -> dict[str, SourceServer[Any, Any]]:
        if self._servers is None:
            self._servers = make_servers(self._settings, graphs, self._place)
        return self._servers

    def ready(self, graphs: SharedGraphs) -> tuple[ActorProcess, list[str] | PoolEvent]:
        """Create the hosted sources and return their keys."""
        name = self._config["negatives"]["source"]
        return self._answer(f"making source {name}", lambda: list(self._servers_of(graphs)))

    def publish(
        self,
        key: str,
        incarnation: str,
        version: int,
        rank: int,
        ranks: int,
        first: int,
        arrays: Arrays,
        graphs: SharedGraphs,
    ) -> tuple[ActorProcess, PoolEvent | None]:
        """Publish a worker's part of the model to a source; as ``SourceServer.publish``."""
        name = hosted_sources(self._settings, graphs)[key].name
        action = f"source {name}, taking over the vectors of step {version} from worker {rank}"
        piece = version, rank, ranks, first, arrays
        return self._answer(action, lambda: self._servers_of(graphs)[key].publish(*piece, incarnation))

    def draw(
        self, key: str, incarnation: str, requests: Sequence[Any], graphs: SharedGraphs
    ) -> tuple[ActorProcess, list[Any] | PoolEvent]:
        """Return the replies of ``SourceServer.answer``, or the event of an error."""
        work = partial(self._draw, key, incarnation, graphs)
        return self._answer("drawing negatives", lambda: [work(request) for request in requests])

    def _draw(self, key: str, incarnation: str, graphs: SharedGraphs, request: Any) -> Any:
        reply = self._servers_of(graphs)[key].answer(request, incarnation)
        self._draws[key] = self._draws.get(key, 0) + 1
        if self._peer is not None and self._draws[key] % BLEND_EVERY == 0:
            self._tell_peer(self._peer, key, graphs)
        return reply

    def blend(
        self, key: str, weights: dict[str, NDArray[np.float32]], graphs: SharedGraphs
    ) -> tuple[ActorProcess, PoolEvent | None]:
        """Blend the weights of another actor into a source; as ``SourceServer.blend``."""
        action = "taking over what another actor has learned"
        return self._answer(action, lambda: self._servers_of(graphs)[key].blend(weights))

    def _tell_peer(self, peer: str, key: str, graphs: SharedGraphs) -> None:
        """Send learned weights to the next actor of a ring without waiting, so that all actors converge to a mean.

        An error of the peer's previous call is raised here, because no other process reads it.
        """
        if self._blending is not None and ray.wait([self._blending], timeout=0)[0]:
            blending, self._blending = self._blending, None
            _raise_unless_lost(blending)
        weights = self._servers_of(graphs)[key].weights()
        if weights and self._blending is None:
            with suppress(ValueError):  # it is being restarted
                self._blending = ray.get_actor(peer).blend.remote(key, weights, graphs)

    def _answer(self, action: str, work: Callable[[], Result]) -> tuple[ActorProcess, Result | PoolEvent]:
        try:
            return self._process, work()
        except Exception as error:
            return self._process, PoolEvent.of_error(error, action)


def _raise_unless_lost(call: ray.ObjectRef) -> None:
    try:
        _, event = ray.get(call)
    except ray.exceptions.RayError as error:
        if is_loss(error) or isinstance(error, ray.exceptions.ActorDiedError):
            return  # workers handle a lost actor
        raise NegativePoolError(describe_remote_error(error)) from None
    if event is not None:
        raise NegativePoolError(event.text)


@dataclass
class _Message:
    """Requests that were sent in one call.

    Attributes:
        actor: index of the actor.
        numbers: numbers of the requests, increasing.
        here: whether the call has ended, with or without replies.
        replies: replies by number, once the call has ended; a ``Missing`` or None for a missing reply.
        missing: reason if there are no replies.
    """

    call: Call
    actor: int
    numbers: list[int]
    here: bool = False
    replies: dict[int, Any] = field(default_factory=dict)
    missing: Missing | None = None


class ActorPool:
    """``negatives.prefetch.pool_client.Pool`` of actors, for the requests of one worker to one hosted source.

    Attributes:
        rank: rank of the worker.
    """

    def __init__(
        self,
        links: Sequence[ActorLink],
        key: str,
        rank: int,
        ranks: int,
        how: PoolConfig,
        incarnation: str = "",
        *,
        places: range | None = None,
    ) -> None:
        """
        Args:
            links: links to all actors of the run.
            key: key of the hosted source.
            rank, ranks: rank of the worker, and number of workers.
            how: settings of the pool.
            incarnation: name of the group of workers, as in ``SourceServer``.
            places: indices of the actors that host the source; None for all.
        """
        self._team = links
        links = links if places is None else [links[place] for place in places]
        self._links, self._key, self.rank, self._ranks, self._incarnation = links, key, rank, ranks, incarnation
        # One window for each actor, so that a slow actor does not limit the others.
        self._windows = [CongestionWindow(-(-2 * how.depth // len(links))) for _ in links]
        self._patience, self._sync = WaitPolicy(), how.sync
        self._under_way: dict[int, _Message] = {}
        self._abandoned: list[_Message] = []
        self._next = rank  # index of the next actor
        self._generations = [link.generation for link in links]
        self._published: tuple[int, int, ray.ObjectRef] | None = None
        self._publishing: list[tuple[int, Call]] = []

    @property
    def restarts(self) -> int:
        return sum(link.restarts for link in self._team)

    @property
    def hung(self) -> int:
        return sum(link.hung for link in self._team)

    @property
    def gone(self) -> bool:
        return all(link.gone for link in self._links)

    def take_events(self) -> Sequence[PoolEvent]:
        return take_events(self._team)

    def room(self) -> int:
        self._look_after_actors()
        return sum(self._room_of_each())

    def _room_of_each(self) -> list[int]:
        owed = Counter(message.actor for message in self._under_way.values())
        for message in self._abandoned:
            owed[message.actor] += len(message.numbers)
        return [
            max(0, len(window) - owed[actor]) if link.ready else 0
            for actor, (window, link) in enumerate(zip(self._windows, self._links, strict=True))
        ]

    def ask(self, requests: Sequence[Numbered]) -> int:
        unsent, room = list(requests), self._room_of_each()
        for _ in self._links:
            actor, self._next = self._next % len(self._links), self._next + 1
            sent = unsent[: room[actor]]
            unsent = unsent[len(sent) :]
            if sent:
                self._send(actor, sent)
            if not unsent:
                break
        return len(requests) - len(unsent)

    def _send(self, actor: int, requests: list[Numbered]) -> None:
        numbers = [request.number for request in requests]
        link = self._links[actor]
        call = link.call("draw", self._key, self._incarnation, requests, link.graphs)
        self._under_way |= dict.fromkeys(numbers, _Message(call, actor, numbers))
        self._windows[actor].asked(numbers[-1])

    def arrived(self, number: int) -> bool:
        message = self._under_way.get(number)
        return message is None or self._is_here(message, 0)

    def take(self, number: int, timeout: float | None) -> Any:
        message = self._under_way.pop(number, None)
        if message is None:
            return None
        if self._is_here(message, 0):
            if number in message.replies:  # else it was lost with its actor
                self._windows[message.actor].in_time()
        elif timeout is None:  # no reply is late without a timeout
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

    def _reply_or_abandon(self, message: _Message, number: int) -> Any:
        """Return the reply to a request, or None; a message with a late reply is kept until its call has ended."""
        if message.here:
            return message.replies.pop(number, message.missing)
        if number == message.numbers[-1]:
            self._abandoned.append(message)
        return None

    def publish(self, version: int, first: int, arrays: Arrays, *, wait: bool) -> None:
        self._published = version, first, ray.put(dict(arrays))
        for actor, link in enumerate(self._links):
            if link.ready:  # a successor gets the vectors once it is ready
                self._publish_to(actor)
        while wait and (self._publishing or not all(link.ready or link.gone for link in self._links)):
            for actor, call in self._publishing:
                self._links[actor].is_over(call, None)
            self._look_after_actors()

    def _is_here(self, message: _Message, timeout: float | None) -> bool:
        """Return whether the call of a message has ended, and store its replies in the message."""
        if not message.here and self._links[message.actor].is_over(message.call, timeout):
            message.here = True
            self._receive(message)
        return message.here

    def _receive(self, message: _Message) -> None:
        link = self._links[message.actor]
        replies = link.outcome(message.call)
        if isinstance(replies, NoReply):
            message.missing = replies.value
        elif not isinstance(replies, list) or len(replies) != len(message.numbers):
            message.missing = "broken"
            link.report(PoolEvent("broken", f"it did not reply to {len(message.numbers)} requests one by one"))
        else:
            replaced = message.call.generation != link.generation
            answers = [self._reply_of(link, answer, replaced=replaced) for answer in replies]
            message.replies = dict(zip(message.numbers, answers, strict=True))

    @staticmethod
    def _reply_of(link: ActorLink, answer: Any, *, replaced: bool) -> Any:
        """Return a reply, or the reason why there is none: ``lost`` if a successor had no vectors yet."""
        if answer is None and replaced:
            return "lost"
        if not isinstance(answer, PoolEvent):
            return answer
        link.report(answer)
        return "broken" if answer.kind == "broken" else "failed"

    def _publish_to(self, actor: int) -> None:
        if self._published is not None:
            version, *piece = self._published
            place, link = (self._key, self._incarnation, version, self.rank, self._ranks), self._links[actor]
            self._publishing.append((actor, link.call("publish", *place, *piece, link.graphs)))

    def _look_after_actors(self) -> None:
        """Drop late replies, read the outcomes of publications, and publish to restarted actors."""
        self._abandoned = [message for message in self._abandoned if not self._is_here(message, 0)]
        pending, self._publishing = self._publishing, []
        for actor, call in pending:
            if self._links[actor].is_over(call, 0):
                self._links[actor].outcome(call)  # None, or an event of the link
            else:
                self._publishing.append((actor, call))
        for actor, link in enumerate(self._links):
            ready = link.wait_until_ready() if self._sync else link.look_after()
            if ready and link.generation != self._generations[actor]:
                self._generations[actor] = link.generation
                self._windows[actor].reset()
                self._patience.reset()
                self._publish_to(actor)


def actor_threads(pool: PoolConfig) -> int:
    """Return the number of threads of one actor: its CPUs, at least one."""
    return max(1, math.floor(pool.cpus_per_actor))


def actor_names(config: RunConfig, run: str) -> list[str]:
    """Return the names of the actors of a run; empty if it has none."""
    return [f"negatives of {run}, {place}" for place in range(config.negatives.pool.actors)]


@contextmanager
def negative_actors(config: RunConfig, run: str, graphs: SharedGraphs) -> Iterator[None]:
    """Start the actors of a run, if it has any, and kill them on exit.

    ``graphs`` are those of ``share_graphs`` for a foundation model.

    Raises:
        NegativePoolError: an actor cannot be created, or dies whenever it is created.
    """
    names, pool = actor_names(config, run), config.negatives.pool
    if not names:
        yield
        return
    # A separate placement group, because Ray Train creates the group of its workers itself and adds nothing to it.
    bundle = actor_resources(config), actor_nodes(config.cluster)
    group = reserve([bundle] * len(names), pool.placement.upper())
    actors: list[Any] = []
    try:
        for place in range(len(names)):
            actors.append(_start_actor(config, names, group, place))
        _wait_until_made([ActorLink(actor, place, math.inf, graphs) for place, actor in enumerate(actors)])
        yield
    finally:
        with suppress(ray.exceptions.RayError):  # if Ray is gone, so are the actors
            for actor in actors:
                ray.kill(actor)  # frees its name, which the removal of the group does not
            remove_placement_group(group)


def _wait_until_made(links: Sequence[ActorLink]) -> None:
    """Wait until all actors have created their sources.

    Raises:
        NegativePoolError: an actor cannot create its sources.
    """
    for link in links:
        link.greet()
    for link in links:
        while not link.wait_until_ready(NOTICE_SECONDS) and not link.gone:
            logger.warning("still waiting for %s: it makes its sources, or has no place in the cluster yet", link.name)
        mistake = next((event for event in link.take_events() if event.kind == "failed"), None)
        if mistake is not None:
            error = NegativePoolError(mistake.text)
            error.add_note(mistake.trace)
            raise error


def _start_actor(config: RunConfig, names: list[str], group: Any, place: int) -> Any:
    # With negatives.pool.sync, results must not depend on the order of actors, so they do not share weights.
    peer = None if len(names) == 1 or config.negatives.pool.sync else names[(place + 1) % len(names)]
    pool, threads = config.negatives.pool, str(actor_threads(config.negatives.pool))
    options = ray.remote(NegativeActor).options(
        name=names[place],
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor,
        memory=actor_resources(config).get(MEMORY),
        max_restarts=-1,
        max_task_retries=0,
        enable_task_events=False,  # of every draw, which the head would keep
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=place),
        runtime_env={"env_vars": {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}},
    )
    return options.remote(config.model_dump(), peer, place)


def actors_of_worker(config: RunConfig, run: str, ranks: Ranks, graphs: SharedGraphs) -> PoolOf | None:
    """Return the function from the key of a hosted source to this worker's pool; None if the run has no actors.

    Collective: the workers agree on a name of their group, which separates their messages from those of a former group.
    """
    pool = config.negatives.pool
    actors = [_find_actor(name) for name in actor_names(config, run)]
    if not actors:
        return None
    incarnation = str(ranks.broadcast_object(uuid4().hex))
    links = [ActorLink(actor, place, pool.hung_after, graphs) for place, actor in enumerate(actors)]
    hosted = hosted_sources(config, graphs)
    return lambda key: ActorPool(links, key, ranks.rank, ranks.size, pool, incarnation, places=hosted[key].places)


def _find_actor(name: str) -> Any | None:
    try:
        return ray.get_actor(name)
    except ValueError:  # permanently dead, because Ray finds an actor that is being restarted
        return None
