"""Ray as ``actor_link`` and its users see it, in this process on a clock of its own: actors die and hang."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions as errors

from distkg.cluster.sampling import actor_link, negative_pool
from distkg.cluster.sampling.actor_link import ActorProcess

UNNOTICED = 1.0  # seconds until callers hear of a death


@dataclass(eq=False)
class Ref:
    """A result, there at some time of the fake clock: a value, or an error that ``get`` raises."""

    result: Any = None
    at: float = math.inf

    def future(self) -> None:
        """Fetch nothing: all results are on this node."""


class FakeActor:
    """Serves methods of ``target()`` one after another, each in so many seconds, in processes that can be ended.

    ``target`` makes what a process holds; what it raises ends the process.
    """

    def __init__(self, ray: FakeRay, target: Callable[[], Any], seconds: float = 0.0, restart: float = 5.0) -> None:
        self._ray, self._target, self.seconds, self.restart_seconds = ray, target, seconds, restart
        self.restarts, self.state, self.hung = 0, "ALIVE", False
        self.owed: list[tuple[Ref, str, tuple[Any, ...]]] = []
        self.calls: list[str] = []
        self._actor_id = SimpleNamespace(hex=lambda: self)
        self._alive_from = self._free_at = ray.now
        self._process, self._object = ActorProcess("node", 100, 1), target()

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self._called(method, arguments))

    def _called(self, method: str, arguments: tuple[Any, ...]) -> Ref:
        self.calls.append(method)
        ref = Ref()
        if self.state == "DEAD":
            ref.result, ref.at = errors.ActorDiedError(), self._ray.now
        else:
            self.owed.append((ref, method, arguments))
        return ref

    def serve(self) -> None:
        """Do what there is time for until now."""
        now = self._ray.now
        if self.state == "RESTARTING" and now >= self._alive_from:
            self.state, self.restarts = "ALIVE", self.restarts + 1
            self._process = ActorProcess("node", 100 + self.restarts, 1 + self.restarts)
            self._object, self._free_at = self._target(), self._alive_from
        while self.owed and self.state == "ALIVE" and not self.hung:
            ref, method, arguments = self.owed[0]
            done = max(self._free_at, self._alive_from) + self.seconds
            if done > now:
                break
            self.owed.pop(0)
            self._free_at, ref.at = done, done
            if method == "ready":
                ref.result = self._process, []
                continue
            try:
                ref.result = self._process, getattr(self._object, method)(*arguments)
            except ProcessEnds:
                self.owed.insert(0, (ref, method, arguments))
                self.die()
            except errors.RayError as error:
                ref.result = error

    def die(self, *, for_good: bool = False) -> None:
        """End the process; who is owed something hears of it a little later."""
        for ref, _, _ in self.owed:
            ref.result = errors.ActorUnavailableError("RPC error", b"1" * 16)
            ref.at = self._ray.now + UNNOTICED
        self.owed, self.hung = [], False
        self.state = "DEAD" if for_good else "RESTARTING"
        self._alive_from = self._ray.now + self.restart_seconds


class ProcessEnds(Exception):
    """Raised by a target: the process ends here."""


class FakeRay:
    """Stands for the module ``ray``; its clock stands for ``time``."""

    def __init__(self) -> None:
        self.now = 0.0
        self.actors: list[FakeActor] = []
        self.killed: list[int] = []
        self.exceptions = errors
        self._private = SimpleNamespace(state=SimpleNamespace(actors=self._row))

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch) -> FakeRay:
        """In the place of Ray in the modules that talk to actors."""
        fake = cls()
        for module in (actor_link, negative_pool):
            monkeypatch.setattr(module, "ray", fake)
        clock = SimpleNamespace(monotonic=lambda: fake.now, sleep=fake.sleep, time_ns=lambda: 0)
        monkeypatch.setattr(actor_link, "time", clock)
        kill = SimpleNamespace(options=lambda **how: SimpleNamespace(remote=fake._kill))
        monkeypatch.setattr(actor_link, "_kill_actor", kill)
        monkeypatch.setattr(actor_link, "NodeAffinitySchedulingStrategy", lambda node, soft: None)
        return fake

    def actor(self, target: Callable[[], Any], **how: float) -> FakeActor:
        self.actors.append(FakeActor(self, target, **how))
        return self.actors[-1]

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for actor in self.actors:
            actor.serve()

    def put(self, value: Any) -> Any:
        return value

    def wait(
        self, refs: Sequence[Ref], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Ref], list[Ref]]:
        self.sleep(0)
        waited = 0.0
        while timeout != 0 and waited < (math.inf if timeout is None else timeout):
            if sum(ref.at <= self.now for ref in refs) >= num_returns:
                break
            self.sleep(0.05)
            waited += 0.05
        return [ref for ref in refs if ref.at <= self.now], [ref for ref in refs if ref.at > self.now]

    def get(self, ref: Ref) -> Any:
        if isinstance(ref.result, Exception):
            raise ref.result
        return ref.result

    def _row(self, actor: FakeActor) -> dict[str, Any]:
        return {
            "State": actor.state,
            "NumRestarts": actor.restarts,
            "Pid": actor._process.pid,
            "Address": {"NodeID": "node"},
        }

    def _kill(self, pid: int) -> Ref:
        victims = [each for each in self.actors if each._process.pid == pid and each.state == "ALIVE"]
        for victim in victims:
            victim.die()
        self.killed += [pid] * len(victims)
        return Ref(bool(victims), self.now)
