"""Actors that compare relations for kmas, as workers ask them and as they do it.

Every worker sends the same weights at the same step and gets its own reply, so none depends on another; an actor
compares once for all of them. One that dies is restarted by Ray and asked again, one that hangs is killed; meanwhile
workers compare in the step. What a comparison raises is an event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import ray

from distkg.cluster.sampling.actor_link import ActorLink, Call, NoReply, take_events
from distkg.cluster.shared_graphs import Graphs, graphs_of_node
from distkg.config import RunConfig
from distkg.data.store.graph_store import Store
from distkg.foundation.initial_model import is_foundation
from distkg.foundation.mining import EncoderMiner
from distkg.negatives import SOURCES, TrainingGraph
from distkg.negatives.base import parse_source_options
from distkg.negatives.kmas.relation_miner import Mine, VectorMiner, Weights
from distkg.negatives.kmas.relation_similarity import AlikeOptions, RelationTable
from distkg.negatives.prefetch.pool_events import PoolEvent
from distkg.negatives.prefetch.prefetched_source import ONLY_SOURCE, hosted_parts


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
        if SOURCES[name].requires == "relations":
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
    """One worker's way to the actors that compare relations; a ``negatives.relation_miner.Miner``."""

    def __init__(self, links: Sequence[ActorLink], key: str, graphs: Graphs) -> None:
        self._links, self._key, self._graphs = links, key, graphs
        self._under_way: dict[int, Call] = {}  # by actor: who owes takes nothing from the others
        self._lost: set[int] = set()  # actors whose successors are to be asked again
        self._sent: tuple[int, ray.ObjectRef] | None = None

    @property
    def restarts(self) -> int:
        return sum(link.restarts for link in self._links)

    @property
    def hung(self) -> int:
        return sum(link.hung for link in self._links)

    def take_events(self) -> Sequence[PoolEvent]:
        return take_events(self._links)

    def ask(self, version: int, weights: Weights) -> bool:
        busy = {*self._under_way, *self._lost}
        free = [actor for actor, link in enumerate(self._links) if actor not in busy and link.look_after()]
        if free:
            self._sent = version, ray.put(dict(weights))
        for actor in free:
            self._send(actor)
        return bool(free)

    def take(self, *, wait: bool) -> Mapping[str, RelationTable]:
        found = self._arrived(wait=wait)
        while wait and (self._under_way or self._lost):
            found |= self._arrived(wait=True)
        return found

    def _send(self, actor: int) -> None:
        assert self._sent is not None
        # Graphs travel with every message: what an actor was made with is lost to its successor.
        self._under_way[actor] = self._links[actor].call("mine", self._key, *self._sent, self._graphs)

    def _arrived(self, *, wait: bool) -> dict[str, RelationTable]:
        """Tables that have come; the successor of an actor that was lost with its tables is asked again."""
        for actor in sorted(self._lost):
            link = self._links[actor]
            if link.wait_until_ready() if wait else link.look_after():
                self._send(actor)
            if link.ready or link.gone:
                self._lost.remove(actor)
        found: dict[str, RelationTable] = {}
        for actor, call in list(self._under_way.items()):
            if self._links[actor].is_over(call, None if wait else 0):
                found |= self._received(self._under_way.pop(actor), actor)
        return found

    def _received(self, call: Call, actor: int) -> Mapping[str, RelationTable]:
        tables = self._links[actor].outcome(call)
        if tables is NoReply.LOST:
            self._lost.add(actor)
        return {} if isinstance(tables, NoReply) else dict(tables)
