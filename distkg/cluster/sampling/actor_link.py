"""Connection of one process to one negative actor, which tells replies, mistakes, deaths and hangs apart.

A mistake (the source raised, a reply cannot be deserialised) is an event, and so is a death, after which the actor is
greeted until its successor is ready. One that owes a reply and says nothing is killed. Nothing that was called is
forgotten: whoever calls reads the outcome.
"""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import psutil
import ray
from ray import exceptions as errors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distkg.cluster.session.remote_errors import describe_remote_error, is_loss
from distkg.cluster.shared_graphs import Graphs
from distkg.negatives.prefetch.pool_events import PoolEvent

WAIT_SECONDS = 0.2  # before an actor that was lost is greeted again, and between looks where it is waited for
MOST_RESTARTS = 10  # in a row, without a reply between them
SECOND_LOOK = 1.0  # seconds for a reply that is overdue, before the actor is killed
DEATH = PoolEvent("lost", "it died (killed, out of memory, ended by its source, or its node was lost)")
GONE_SECONDS = 5.0  # for a process that was killed, until it counts as killed whatever it does
MAKING = 10  # times as long as a draw, before a successor that is still making its sources counts as hung


class Process(NamedTuple):
    """Where an actor lives; another one after a restart."""

    node: str
    pid: int
    born: int


class NoReply(Enum):
    """Why a call has no reply and never will."""

    LOST = "lost"
    FAILED = "failed"


@dataclass
class Call:
    """A method of an actor under way.

    Attributes:
        generation: of the actor's process, as of ``ActorLink.generation``.
    """

    reply: ray.ObjectRef
    method: str
    generation: int
    since: float


class ActorLink:
    """One process's connection to an actor.

    Attributes:
        name: of the actor, in messages.
        generation: rises with every successor that is ready, which holds nothing that its predecessors were sent.
        restarts: how often the actor was replaced.
        hung: how often it was killed from here because it did not answer.
        gone: whether it will never answer again.
        graphs: of the run, for an actor to make its sources of.
    """

    def __init__(self, actor: Any | None, place: int, hung_after: float, graphs: Graphs) -> None:
        """``actor`` is its handle; None where it is gone already."""
        self.generation = self.restarts = self.hung = 0
        self.gone = actor is None
        self._actor, self.name, self._hung_after, self.graphs = actor, f"negative actor {place}", hung_after, graphs
        self._greeting: Call | None = None
        self._greet_at: float | None = None
        self._kill: ray.ObjectRef | None = None
        self._process: Process | None = None
        self._former: Process | None = None
        self._heard, self._died = time.monotonic(), False
        self._restarts_before: int | None = None  # at the first loss since the latest reply, as Ray counts them
        self._events: list[PoolEvent] = []
        if self.gone:
            self.report(PoolEvent("failed", "it could not be started again for a former group of workers"))

    @property
    def ready(self) -> bool:
        """Whether calls may be sent."""
        return self._greeting is None and self._greet_at is None and not self.gone

    def take_events(self) -> list[PoolEvent]:
        """What happened since the last call."""
        taken, self._events = self._events, []
        return taken

    def call(self, method: str, *arguments: Any) -> Call:
        """Send a call without waiting."""
        return Call(getattr(self._actor, method).remote(*arguments), method, self.generation, time.monotonic())

    def is_over(self, call: Call, timeout: float | None) -> bool:
        """Whether a call has come to an end; waits so many seconds for it, or for as long as it takes."""
        while True:
            over, _ = ray.wait([call.reply], timeout=self._hung_after if timeout is None else timeout)
            if over:
                return True
            self._kill_if_hung(call)
            if timeout is not None:
                return False

    def outcome(self, call: Call) -> Any:
        """What a call that is over returned, or a ``NoReply``."""
        try:
            answer = ray.get(call.reply)
        except errors.RayError as error:
            if is_loss(error):
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
        """Note something that went wrong in the actor."""
        self._events.append(event.at(self.name))

    def greet(self) -> None:
        """Send no calls until the actor has made its sources."""
        self._greeting, self._greet_at = self.call("ready", self.graphs), None

    def look_after(self) -> bool:
        """Whether calls may be sent; notes whether one who was greeted is ready, or must be greeted again."""
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
        """As ``look_after``, once the actor is ready or gone, or after so many seconds."""
        end = time.monotonic() + seconds
        while not self.look_after() and not self.gone and time.monotonic() < end:
            if self._greeting is None:
                time.sleep(WAIT_SECONDS)
            else:
                self.is_over(self._greeting, WAIT_SECONDS)
        return self.ready

    def _learn(self, process: Process) -> None:
        if self._process is None:  # the first one, or the first since a death
            self.restarts += self._died and self._former != process
            self._died = False
        elif self._process != process:  # it died while it owed nothing
            self.restarts += 1
            self.generation += 1
            self.report(DEATH)
        self._process = self._former = process

    def _lose(self, call: Call) -> None:
        """Others that were under way with the same process tell nothing new."""
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
        # Not at once: until Ray has seen that the process is gone, a greeting would be lost as well.
        self._greet_at = time.monotonic() + WAIT_SECONDS

    def _fail(self, call: Call, error: errors.RayError) -> None:
        if isinstance(error, errors.ActorDiedError):
            if self.gone:
                return
            self.gone = True
            self.report(PoolEvent("failed", f"it cannot be started: {describe_remote_error(error)}", str(error)))
            return
        reason = "cannot be made" if call.method == "ready" else f"failed in {call.method}"
        if isinstance(error, errors.RaySystemError):
            reason = f"gave a reply to {call.method} that cannot be deserialised"
        text = f"it {reason}: {describe_remote_error(error)}"
        self.report(PoolEvent("failed", text, str(error)))

    def _kill_if_hung(self, call: Call) -> None:
        """One that is being replaced, or still has no place in the cluster, does not hang."""
        self._read_kill()
        patience = self._hung_after * (MAKING if call.method == "ready" else 1)
        if time.monotonic() - max(call.since, self._heard) <= patience or self._kill is not None:
            return
        self._heard = time.monotonic()  # and is looked at again as long from now
        if ray.wait([call.reply], timeout=SECOND_LOOK)[0]:
            return  # it had come while nobody looked, and only had to be fetched
        process = self._process if self.ready else None
        node_and_pid = (process.node, process.pid) if process is not None else self._living_process()
        if node_and_pid is not None:
            node, pid = node_and_pid
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            self._kill = _kill_actor.options(scheduling_strategy=there).remote(pid)

    def _living_process(self) -> tuple[str, int] | None:
        """Node and process of the actor; None while it has none."""
        known = self._known_to_ray()
        return (known["Address"]["NodeID"], known["Pid"]) if known.get("State") == "ALIVE" else None

    def _known_to_ray(self) -> dict[str, Any]:
        """The actor's row in Ray's table of actors; its public API needs the dashboard, which a private Ray lacks."""
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
    """Whether the process was an actor of ours, and was killed: another worker may have done so before.

    ``ray.kill`` would ask the process itself, which one that is stopped does not hear.
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
    """Hold a lock of this node, so that of several workers that kill the same process only the first counts it."""
    with open(__file__) as common:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(common, fcntl.LOCK_EX)
        yield


def take_events(links: Sequence[ActorLink]) -> list[PoolEvent]:
    """What happened to any of them since the last call."""
    return [event for link in links for event in link.take_events()]
