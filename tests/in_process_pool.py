"""A pool that draws in this process, with the faults that a test asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distkg.kernels.scores.similarity import DOT, Similarity
from distkg.negatives import TrainingGraph
from distkg.negatives.prefetch.messages import Reply, Request
from distkg.negatives.prefetch.pool_events import Missing, PoolEvent
from distkg.negatives.prefetch.prefetched_source import PoolOf, hosted_parts
from distkg.negatives.prefetch.source_server import SourceServer


@dataclass
class InProcessPool:
    """Draws when asked; ``spoil`` changes replies on their way, None being one that is late."""

    host: SourceServer
    most: int = 1000
    spoil: Callable[[Reply], Reply | None] = lambda reply: reply
    restarts: int = 0
    hung: int = 0
    events: list[PoolEvent] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    published: list[int] = field(default_factory=list)
    under_way: dict[int, Reply | PoolEvent | None] = field(default_factory=dict)

    def take_events(self) -> Sequence[PoolEvent]:
        taken, self.events = self.events, []
        return taken

    def ask(self, requests: Sequence[Request]) -> int:
        accepted = requests[: max(0, self.most - len(self.under_way))]
        for request in accepted:
            self.requests.append(request)
            self.under_way[request.number] = self.host.answer(request)
        return len(accepted)

    def room(self) -> int:
        return max(0, self.most - len(self.under_way))

    def take(self, number: int, timeout: float | None) -> Reply | Missing | None:
        reply = self.under_way.pop(number)
        if isinstance(reply, PoolEvent):
            self.events.append(reply)
            return "broken" if reply.kind == "broken" else "failed"
        return None if reply is None else self.spoil(reply)

    def forget(self, number: int) -> None:
        del self.under_way[number]

    def publish(self, version: int, first: int, rows: NDArray[np.float32], *, wait: bool) -> None:
        self.published.append(version)
        self.host.publish(version, 0, 1, first, rows)


def in_process(
    graph: TrainingGraph, name: str, options: Mapping[str, Any], similarity: Similarity = DOT, **how: Any
) -> tuple[PoolOf, dict[str, InProcessPool]]:
    """A way to pools in this process, and those pools by the keys of what they host."""
    parts = hosted_parts(name, options)
    pools = {key: InProcessPool(SourceServer(graph, *part, similarity), **how) for key, part in parts.items()}
    return pools.__getitem__, pools
