"""Actors that compare relations for kmas, as workers ask them and as they do it.

Every worker sends the same weights at the same step and gets its own reply, so none depends on another; an actor
compares once for all of them. One that dies is restarted by Ray and asked again; meanwhile workers compare in the step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray

from distkg.cluster.shared_graphs import Graphs, graphs_of_node
from distkg.config import RunConfig
from distkg.data.store import Store
from distkg.negatives import SOURCES, TrainingGraph
from distkg.negatives.ahead import ONLY_SOURCE, hosted_parts
from distkg.negatives.alike import AlikeOptions, RelationTable
from distkg.negatives.base import parse_source_options
from distkg.negatives.mined import Mine, VectorMiner, Weights
from distkg.training.foundation_model import is_foundation
from distkg.training.mining import EncoderMiner

RESTARTING = 0.2  # seconds between attempts to reach an actor that is being restarted, where tables are waited for


def mines_of(config: RunConfig, graphs: Graphs, place: int) -> dict[str, Mine]:
    """What the actor at that place of a pool compares relations by: by key of the hosted source."""
    chosen = config.negatives
    if is_foundation(config):
        graph_of = graphs_of_node(graphs)
        assert graph_of is not None
        own = list(graphs)[place :: chosen.pool.actors]
        return {ONLY_SOURCE: Remembered(EncoderMiner(config, [graph_of(address) for address in own]))}
    mines: dict[str, Mine] = {}
    for key, (name, options) in hosted_parts(chosen.source, chosen.options).items():
        if SOURCES[name].looks_at == "relations":
            parsed = parse_source_options(name, options)
            assert isinstance(parsed, AlikeOptions)
            mines[key] = Remembered(VectorMiner(TrainingGraph.of_store(Store.open(config.data.store)), parsed))
    return mines


class Remembered:
    """Compares once what several workers ask for; a ``Mine``."""

    def __init__(self, mine: Mine) -> None:
        self._mine = mine
        self._asked: tuple[int, Weights] | None = None
        self._tables: Mapping[str, RelationTable] = {}

    def __call__(self, version: int, weights: Weights) -> Mapping[str, RelationTable]:
        # A group of workers that began anew may come to the same step with other weights.
        if self._asked is None or version != self._asked[0] or not _equal(weights, self._asked[1]):
            self._tables = self._mine(version, weights)
            self._asked = version, weights
        return self._tables


def _equal(left: Weights, right: Weights) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


class ActorMiner:
    """One worker's way to the actors that compare relations; a ``negatives.mined.Miner``."""

    def __init__(self, actors: Sequence[Any], key: str, graphs: Graphs) -> None:
        self.restarts = 0
        self._actors, self._key, self._graphs = actors, key, graphs
        self._under_way: dict[int, ray.ObjectRef] = {}  # by actor: who owes takes nothing from the others
        self._sent: tuple[int, ray.ObjectRef] | None = None
        self._processes: dict[int, Any] = {}

    def ask(self, version: int, weights: Weights) -> bool:
        free = [actor for actor in range(len(self._actors)) if actor not in self._under_way]
        if free:
            self._sent = version, ray.put(dict(weights))
        for actor in free:
            self._send(actor)
        return bool(free)

    def take(self, *, wait: bool) -> Mapping[str, RelationTable]:
        found = self._arrived(None if wait else 0)
        while wait and self._under_way:
            time.sleep(RESTARTING)
            found |= self._arrived(None)
        return found

    def _send(self, actor: int) -> None:
        assert self._sent is not None
        # Graphs travel with every message: what an actor was made with is lost to its successor.
        self._under_way[actor] = self._actors[actor].mine.remote(self._key, *self._sent, self._graphs)

    def _arrived(self, timeout: float | None) -> dict[str, RelationTable]:
        """Tables that have come; who was lost with its tables is asked again."""
        if not self._under_way:
            return {}
        ready, _ = ray.wait(list(self._under_way.values()), num_returns=len(self._under_way), timeout=timeout)
        found: dict[str, RelationTable] = {}
        for actor in [actor for actor, arrival in self._under_way.items() if arrival in ready]:
            found |= self._received(self._under_way.pop(actor), actor)
        return found

    def _received(self, arrival: ray.ObjectRef, actor: int) -> Mapping[str, RelationTable]:
        try:
            process, tables = ray.get(arrival)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError:
            self._send(actor)
            return {}
        if self._processes.setdefault(actor, process) != process:
            self._processes[actor] = process
            self.restarts += 1
        return dict(tables)
