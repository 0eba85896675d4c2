"""Connection of one process to one negative actor, which distinguishes replies, errors, deaths and hangs.

An error (the source raised, a reply cannot be deserialised) is an event. A death is an event too, after which ``ready``
is called until the successor of the actor replies. An actor that owes a reply and sends nothing is killed. The caller
reads the outcome of every call.
"""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import psutil
import ray
from ray import exceptions as errors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distkg.cluster.session.remote_errors import describe_remote_error, is_loss
from distkg.cluster.shared_graphs import SharedGraphs
from distkg.negatives.prefetch.pool_events import PoolEvent

WAIT_SECONDS = 0.2  # before ``ready`` is called on a lost actor again, and between polls for its reply
MOST_RESTARTS = 10  # consecutive restarts without a reply
SECOND_LOOK = 1.0  # seconds to fetch a reply that may have arrived, before the actor is killed
DEATH = PoolEvent("lost", "it died (killed, out of memory, ended by its source, or its node was lost)")
GONE_SECONDS = 5.0  # maximum wait for the exit of a killed process
MAKING = 10  # factor of the timeout of a hung actor while it creates its sources


class ActorProcess(NamedTuple):
    """Process of an actor, which changes with a restart."""

    node: str
    pid: int
    born: int


class NoReply(Enum):
    """Reason why a call will never have a reply."""

    LOST = "lost"
    FAILED = "failed"


@dataclass
class Call:
    """Pending call of a method of an actor.

    Attributes:
        fetched: future of the reply, which has Ray bring it to this node as soon as it is there. ``ray.wait`` alone
            would begin to fetch the reply of an actor on another node when it is needed, and find every one late.
        generation: ``ActorLink.generation`` at the call.
        since: time of the call (``time.monotonic``).
    """

    reply: ray.ObjectRef
    fetched: Future[Any]
    method: str
    generation: int
    since: float


class ActorLink:
    """Connection of one process to an actor.

    Attributes:
        name: name of the actor in messages.
        generation: number that rises with every successor of the actor, which holds no data sent to its predecessors.
        restarts: number of restarts of the actor.
        hung: number of times that this process had the actor killed because it did not answer.
        gone: whether the actor will never answer again.
        graphs: graphs of the run, from which an actor creates its sources.
    """

    def __init__(self, actor: Any | None, place: int, hung_after: float, graphs: SharedGraphs) -> None:
        """``actor`` is its handle; None if it is gone already."""
        self.generation = self.restarts = self.hung = 0
        self.gone = actor is None
        self._actor, self.name, self._hung_after, self.graphs = actor, f"negative actor {place}", hung_after, graphs
        self._greeting: Call | None = None
        self._greet_at: float | None = None
        self._kill: ray.ObjectRef | None = None
        self._process: ActorProcess | None = None
        self._former: ActorProcess | None = None
        self._heard, self._died = time.monotonic(), False
        self._restarts_before: int | None = None  # Ray's count at the first loss since the latest reply
        self._events: list[PoolEvent] = []
        if self.gone:
            self.report(PoolEvent("failed", "it could not be started again for a former group of workers"))

    @property
    def ready(self) -> bool:
        """Return whether calls may be sent."""
        return self._greeting is None and self._greet_at is None and not self.gone

    def take_events(self) -> list[PoolEvent]:
        """Return and clear the events since the last call."""
        events, self._events = self._events, []
        return events

    def call(self, method: str, *arguments: Any) -> Call:
        """Send a call without waiting."""
        reply = getattr(self._actor, method).remote(*arguments)
        return Call(reply, reply.future(), method, self.generation, time.monotonic())

    def is_over(self, call: Call, timeout: float | None) -> bool:
        """Return whether a call has ended, after a wait of ``timeout`` seconds; None waits until it has ended."""
        while True:
            finished, _ = ray.wait([call.reply], timeout=self._hung_after if timeout is None else timeout)
            if finished:
                return True
            self._kill_if_hung(call)
            if timeout is not None:
                return False

    def outcome(self, call: Call) -> Any:
        """Return the result of a call that has ended, or a ``NoReply``."""
        try:
            answer = ray.get(call.reply)
        except errors.RayError as error:
            if is_loss(error) or self._may_come_back(error):
                self._lose(call)
                return NoReply.LOST
            self._fail(call, error)
            return NoReply.FAILED
        self._heard = time.monotonic()
        if not isinstance(answer, tuple) or len(answer) != 2:
            self.report(PoolEvent("broken", f"{call.method} returned a {type(answer).__name__}"))
            return NoReply.FAILED
        process, value = answer
        if call.generation == self.generation:
            self._learn(process)
        if isinstance(value, PoolEvent):
            self.report(value)
            return NoReply.FAILED
        if call.method not in ("ready", "publish"):
            self._restarts_before = None
        return value

    def report(self, event: PoolEvent) -> None:
        """Record an event of the actor."""
        self._events.append(event.at(self.name))

    def greet(self) -> None:
        """Call ``ready``, and send no other calls until the actor has created its sources."""
        self._greeting, self._greet_at = self.call("ready", self.graphs), None

    def look_after(self) -> bool:
        """Return whether calls may be sent, after a check of the pending ``ready`` call, which is repeated if lost."""
        self._read_kill()
        if self._greet_at is not None and time.monotonic() >= self._greet_at:
            self.greet()
        greeting = self._greeting
        if greeting is None or not self.is_over(greeting, 0):
            return self.ready
        self._greeting = None
        if self.outcome(greeting) is NoReply.FAILED:
            self.gone = True
        return self.ready

    def wait_until_ready(self, seconds: float = math.inf) -> bool:
        """Wait until the actor is ready or gone, at most ``seconds``; return whether calls may be sent."""
        end = time.monotonic() + seconds
        while not self.look_after() and not self.gone and time.monotonic() < end:
            if self._greeting is None:
                time.sleep(WAIT_SECONDS)
            else:
                self.is_over(self._greeting, WAIT_SECONDS)
        return self.ready

    def _learn(self, process: ActorProcess) -> None:
        if self._process is None:  # the first one, or the first since a death
            self.restarts += self._died and self._former != process
            self._died = False
        elif self._process != process:  # it died without a pending call
            self.restarts += 1
            self.generation += 1
            self.report(DEATH)
        self._process = self._former = process

    def _lose(self, call: Call) -> None:
        """Record the death of the actor's process, once for all calls that were pending in it."""
        if not self.ready or call.generation != self.generation:
            return
        self.generation += 1
        self._process, self._died = None, True
        restarts = int(self._known_to_ray().get("NumRestarts", 0))
        self._restarts_before = restarts if self._restarts_before is None else self._restarts_before
        if restarts - self._restarts_before >= MOST_RESTARTS:
            self.gone = True
            text = "without a reply between them (killed, out of memory, or ended by its source)"
            self.report(PoolEvent("failed", f"it was restarted {MOST_RESTARTS} times, {text}"))
            return
        self.report(DEATH)
        # Not at once, because a call is lost too until Ray has noticed the death of the process.
        self._greet_at = time.monotonic() + WAIT_SECONDS

    def _may_come_back(self, error: errors.RayError) -> bool:
        """Return whether Ray will restart an actor that it has called dead: calls end so while it has not yet noticed
        that the node of the actor is lost."""
        return isinstance(error, errors.ActorDiedError) and self._known_to_ray().get("State", "DEAD") != "DEAD"

    def _fail(self, call: Call, error: errors.RayError) -> None:
        if isinstance(error, errors.ActorDiedError):
            if self.gone:
                return
            self.gone = True
            self.report(PoolEvent("failed", f"it cannot be started: {describe_remote_error(error)}", str(error)))
            return
        reason = "cannot be created" if call.method == "ready" else f"failed in {call.method}"
        if isinstance(error, errors.RaySystemError):
            reason = f"gave a reply to {call.method} that cannot be deserialised"
        text = f"it {reason}: {describe_remote_error(error)}"
        self.report(PoolEvent("failed", text, str(error)))

    def _kill_if_hung(self, call: Call) -> None:
        """Kill the actor if its reply is overdue, unless it is being restarted or is not yet placed in the cluster."""
        self._read_kill()
        patience = self._hung_after * (MAKING if call.method == "ready" else 1)
        if time.monotonic() - max(call.since, self._heard) <= patience or self._kill is not None:
            return
        self._heard = time.monotonic()  # the next check is due after the same time
        if ray.wait([call.reply], timeout=SECOND_LOOK)[0]:
            return  # the reply had arrived, and only had to be fetched
        process = self._process if self.ready else None
        node_and_pid = (process.node, process.pid) if process is not None else self._living_process()
        if node_and_pid is not None:
            node, pid = node_and_pid
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            self._kill = _kill_actor.options(scheduling_strategy=there).remote(pid)

    def _living_process(self) -> tuple[str, int] | None:
        """Return the node and the process id of the actor; None while it has no process."""
        known = self._known_to_ray()
        return (known["Address"]["NodeID"], known["Pid"]) if known.get("State") == "ALIVE" else None

    def _known_to_ray(self) -> dict[str, Any]:
        """Return the actor's row in Ray's table of actors; the public API needs the dashboard, which a private Ray does
        not have."""
        assert self._actor is not None
        return dict(ray._private.state.actors(self._actor._actor_id.hex()) or {})

    def _read_kill(self) -> None:
        if self._kill is None or not ray.wait([self._kill], timeout=0)[0]:
            return
        kill, self._kill = self._kill, None
        try:
            killed = ray.get(kill)
        except errors.RayError as error:
            if not is_loss(error) and not isinstance(error, errors.TaskUnschedulableError):
                text = f"it does not answer and could not be killed: {describe_remote_error(error)}"
                self.report(PoolEvent("hung", text, str(error)))
            return
        if killed:
            self.hung += 1
            self.report(PoolEvent("hung", f"it did not answer for {self._hung_after:g} s (negatives.pool.hung_after)"))


@ray.remote(num_cpus=0)
def _kill_actor(pid: int) -> bool:
    """Kill a Ray process of this node; return False if another worker has done so before.

    ``ray.kill`` sends a message to the process, which a hung process does not read.
    """
    with suppress(psutil.NoSuchProcess), _one_at_a_time():
        process = psutil.Process(pid)
        if pid != os.getpid() and "".join(process.cmdline()[:1]).startswith("ray::"):  # and no later process
            process.kill()
            with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                process.wait(GONE_SECONDS)
            return True
    return False


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Hold a lock of this node, so that only the first of several workers counts a killed process."""
    with open(__file__) as common:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(common, fcntl.LOCK_EX)
        yield


def take_events(links: Sequence[ActorLink]) -> list[PoolEvent]:
    """Return and clear the events of all links since the last call."""
    return [event for link in links for event in link.take_events()]
