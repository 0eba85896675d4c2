"""A pool that replies in this process, with the faults that a test asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distkg.kernels.scores.similarity import DOT, Similarity
from distkg.negatives import TrainingGraph
from distkg.negatives.prefetch.pool_client import Arrays, Numbered, PoolOf
from distkg.negatives.prefetch.pool_events import PoolEvent
from distkg.negatives.prefetch.prefetched_source import hosted_parts
from distkg.negatives.prefetch.source_server import SourceServer, make_server


@dataclass
class InProcessPool:
    """Replies when asked; ``spoil`` changes replies on their way, None being one that is late.

    ``late`` says how often a worker looks for a reply in vain before it has arrived, None for always.
    """

    host: SourceServer[Any, Any]
    most: int = 1000
    spoil: Callable[[Any], Any] = lambda reply: reply
    late: int | None = 0
    rank: int = 0
    restarts: int = 0
    hung: int = 0
    gone: bool = False
    events: list[PoolEvent] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    published: list[int] = field(default_factory=list)
    arrays: list[Arrays] = field(default_factory=list)
    under_way: dict[int, Any] = field(default_factory=dict)
    looks: int = 0

    def take_events(self) -> Sequence[PoolEvent]:
        taken, self.events = self.events, []
        return taken

    def ask(self, requests: Sequence[Numbered]) -> int:
        accepted = requests[: max(0, self.most - len(self.under_way))]
        for request in accepted:
            self.requests.append(request)
            self.under_way[request.number] = self.host.answer(request)
        return len(accepted)

    def room(self) -> int:
        return max(0, self.most - len(self.under_way))

    def arrived(self, number: int) -> bool:
        self.looks += 1
        if self.late is None or self.looks <= self.late:
            return False
        self.looks = 0
        return True

    def take(self, number: int, timeout: float | None) -> Any:
        reply = self.under_way.pop(number)
        if isinstance(reply, PoolEvent):
            self.events.append(reply)
            return "broken" if reply.kind == "broken" else "failed"
        return None if reply is None else self.spoil(reply)

    def forget(self, number: int) -> None:
        del self.under_way[number]

    def publish(self, version: int, first: int, arrays: Arrays, *, wait: bool) -> None:
        arrays = {name: array.copy() for name, array in arrays.items()}
        self.published.append(version)
        self.arrays.append(arrays)
        self.host.publish(version, 0, 1, first, arrays)


def in_process(
    graph: TrainingGraph, name: str, options: Mapping[str, Any], similarity: Similarity = DOT, **how: Any
) -> tuple[PoolOf, dict[str, InProcessPool]]:
    """A way to pools in this process, and those pools by the keys of what they host."""
    parts = hosted_parts(name, options)
    pools = {key: InProcessPool(make_server(*part, graph, similarity), **how) for key, part in parts.items()}
    return pools.__getitem__, pools
