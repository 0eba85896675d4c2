"""Sampler of example facts of a relation and the subgraphs around them.

KG-ICL (Cui et al. 2024, arXiv 2410.12288) calls this a prompt graph: facts of a relation, and the facts near their two
ends, describe the relation in any graph without its name.

Random choices are made by a hash of each fact: of the eligible facts, those with the smallest hashes are chosen. Hiding
facts thus gives exactly the sample of the graph without them, and hiding a fact outside the sample changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distkg.compilation import njit
from distkg.hashing import GAMMA, splitmix64

MOST_KEPT = 1024  # cached relations, 40 kB each with five examples and five facts per entity


@dataclass(frozen=True)
class Surrounding:
    """Subgraph around one example fact, including it, with entities renumbered.

    Attributes:
        nodes: int32 [n], entities: first the example's head, then its tail, unless it is the same.
        facts: int32 [e], indices into the sampler's facts, ascending and hence sorted by relation.
        head, tail: int32 [e], ends of the facts, as indices into ``nodes``.
        from_head, from_tail: int32 [n], distances in the undirected subgraph from the example's head and tail, at most
            ``hops``.
    """

    nodes: NDArray[np.int32]
    facts: NDArray[np.int32]
    head: NDArray[np.int32]
    tail: NDArray[np.int32]
    from_head: NDArray[np.int32]
    from_tail: NDArray[np.int32]


class ExampleSampler:
    """Sampler of example facts of relations, from facts int [T, 3], with the subgraph within ``hops`` of their ends.

    Attributes:
        hops: largest distance from the ends of an example.
        head, relation, tail: int32 [T'], distinct facts, sorted by relation, head and tail.
    """

    def __init__(
        self, triples: np.ndarray, entities: int, relations: int, *, hops: int = 3, fanout: int = 5, seed: int = 0
    ) -> None:
        """``fanout`` is the largest number of facts followed from each entity, besides the example; ``seed`` decides
        which facts."""
        self.hops, self._fanout, self._entities = hops, fanout, entities
        self._keys = np.unique(self._keys_of(*triples.T.astype(np.int64)))
        pairs, tail = np.divmod(self._keys, entities)
        relation, head = np.divmod(pairs, entities)
        self.head, self.relation, self.tail = (side.astype(np.int32) for side in (head, relation, tail))
        self._of_relation = np.searchsorted(self.relation, np.arange(relations + 1))
        self._hashes = _hashes(self.head, self.relation, self.tail, seed)
        # Facts of each entity, as head or tail, sorted by hash.
        place = np.arange(len(self.head), dtype=np.int32)
        loop = self.head == self.tail
        end, fact = np.concatenate([self.head, self.tail[~loop]]), np.concatenate([place, place[~loop]])
        order = np.lexsort((self._hashes[fact], end))
        self._facts = fact[order]
        self._of_entity = np.searchsorted(end[order], np.arange(entities + 1))
        self._cache: dict[tuple[int, int], list[Surrounding]] = {}

    def hidden(self, head: np.ndarray, relation: np.ndarray, tail: np.ndarray) -> NDArray[np.bool_]:
        """Return the mask bool [T'], True for the given facts, int [m] each, all of which must be in the graph."""
        mask = np.zeros(len(self._keys), dtype=np.bool_)
        mask[np.searchsorted(self._keys, self._keys_of(head, relation, tail))] = True
        return mask

    def surroundings(
        self, relations: Sequence[int], count: int, hidden: NDArray[np.bool_] | None = None, draw: int = 0
    ) -> list[list[Surrounding]]:
        """Sample the subgraphs of ``count`` examples of each relation in [0, R), or of all if it has fewer.

        Args:
            hidden: bool [T'], True for facts to hide; None for none.
            draw: number of the draw. Draw 0 is cached, and used while it contains no hidden fact.
        """
        room, nothing = np.full(self._entities, -1, dtype=np.int32), np.zeros(len(self._keys), dtype=np.bool_)

        def made(relation: int, hidden: NDArray[np.bool_]) -> list[Surrounding]:
            return [self._around(fact, hidden, room) for fact in self.examples(relation, count, hidden, draw).tolist()]

        subgraphs = []
        for relation in relations:
            if draw:
                subgraphs.append(made(relation, nothing if hidden is None else hidden))
                continue
            key = relation, count
            if key not in self._cache:
                if len(self._cache) == MOST_KEPT:
                    del self._cache[next(iter(self._cache))]
                self._cache[key] = made(relation, nothing)
            examples = self._cache[key]
            if hidden is not None and any(bool(hidden[around.facts].any()) for around in examples):
                examples = made(relation, hidden)
            subgraphs.append(examples)
        return subgraphs

    def examples(
        self, relation: int, count: int, hidden: NDArray[np.bool_] | None = None, draw: int = 0
    ) -> NDArray[np.int64]:
        """Sample up to ``count`` facts of a relation and return their indices; arguments as in ``surroundings``."""
        hidden = np.zeros(len(self._keys), dtype=np.bool_) if hidden is None else hidden
        first, last = self._of_relation[relation : relation + 2]
        drawn: NDArray[np.int64] = _drawn(first, last, self._hashes, hidden, draw, count)
        return drawn

    def around(self, fact: int, hidden: NDArray[np.bool_] | None = None) -> Surrounding:
        """Sample the subgraph around the fact with index ``fact``, which is included even if it is hidden."""
        hidden = np.zeros(len(self._keys), dtype=np.bool_) if hidden is None else hidden
        return self._around(fact, hidden, np.full(self._entities, -1, dtype=np.int32))

    def _around(self, fact: int, hidden: NDArray[np.bool_], room: NDArray[np.int32]) -> Surrounding:
        graph = self.head, self.tail, self._of_entity, self._facts
        return Surrounding(*_around(fact, *graph, hidden, self.hops, self._fanout, room))

    def _keys_of(self, head: np.ndarray, relation: np.ndarray, tail: np.ndarray) -> NDArray[np.int64]:
        """Return one sortable key for each fact; keys have the order of facts."""
        keys: NDArray[np.int64] = (relation.astype(np.int64) * self._entities + head) * self._entities + tail
        return keys


_splitmix64 = njit(cache=True, nogil=True)(splitmix64)
_GAMMA = np.uint64(GAMMA)


@njit(cache=True, nogil=True)
def _mixed(state: np.uint64, part: np.uint64) -> np.uint64:
    """Return a hash of a state and a part that is mixed into it."""
    return _splitmix64((state ^ part) + _GAMMA)


@njit(cache=True, nogil=True)
def _hashes(head: np.ndarray, relation: np.ndarray, tail: np.ndarray, seed: int) -> np.ndarray:
    hashes = np.empty(len(head), dtype=np.uint64)
    start = _mixed(np.uint64(0), np.uint64(seed))
    for f in range(len(head)):
        hashes[f] = _mixed(_mixed(_mixed(start, np.uint64(head[f])), np.uint64(relation[f])), np.uint64(tail[f]))
    return hashes


@njit(cache=True, nogil=True)
def _drawn(first: int, last: int, hashes: np.ndarray, hidden: np.ndarray, draw: int, count: int) -> np.ndarray:
    """Return the ``count`` visible facts in first … last - 1 with the smallest hashes of ``draw``, smallest first."""
    smallest, keys, size = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.uint64), 0
    for f in range(first, last):
        key = _mixed(hashes[f], np.uint64(draw))
        if hidden[f] or (size == count and key >= keys[size - 1]):
            continue
        place = min(size, count - 1)
        while place > 0 and keys[place - 1] > key:
            smallest[place], keys[place] = smallest[place - 1], keys[place - 1]
            place -= 1
        smallest[place], keys[place] = f, key
        size = min(size + 1, count)
    return smallest[:size]


@njit(cache=True, nogil=True)
def _around(
    example: int,
    head: np.ndarray,
    tail: np.ndarray,
    offsets: np.ndarray,
    facts: np.ndarray,
    hidden: np.ndarray,
    hops: int,
    fanout: int,
    room: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Compute the fields of ``Surrounding``; ``room`` int32 [entities] is -1 everywhere, before and after."""
    met, step = 2, 2
    for _ in range(hops):
        step = min(step * fanout, 2 * len(head))
        met += step
    nodes = np.empty(min(met, len(room)), dtype=np.int32)
    found = np.empty(min(met, 2 * len(head)) + 1, dtype=np.int32)
    nodes[0], found[0], size, taken = head[example], example, 1, 1
    room[nodes[0]] = 0
    if tail[example] != head[example]:
        nodes[1], size = tail[example], 2
        room[nodes[1]] = 1
    first = 0
    for _ in range(hops):
        last = size
        for node in nodes[first:last]:
            kept = 0
            for f in facts[offsets[node] : offsets[node + 1]]:
                if kept == fanout:
                    break
                if hidden[f]:
                    continue
                kept += 1
                found[taken] = f
                taken += 1
                other = tail[f] if head[f] == node else head[f]
                if room[other] < 0:
                    room[other], nodes[size] = size, other
                    size += 1
        first = last
    own = np.unique(found[:taken])
    source, target = room[head[own]], room[tail[own]]
    ends = room[head[example]], room[tail[example]]
    nodes = nodes[:size].copy()
    room[nodes] = -1
    from_head, from_tail = _steps(ends[0], size, source, target, hops), _steps(ends[1], size, source, target, hops)
    return nodes, own, source, target, from_head, from_tail


@njit(cache=True, nogil=True)
def _steps(start: int, nodes: int, source: np.ndarray, target: np.ndarray, most: int) -> np.ndarray:
    """Compute undirected distances from a node: int32 [nodes], at most ``most``."""
    steps = np.full(nodes, most, dtype=np.int32)
    steps[start] = 0
    for step in range(most - 1):
        for e in range(len(source)):
            for here, there in ((source[e], target[e]), (target[e], source[e])):
                if steps[here] == step and steps[there] > step + 1:
                    steps[there] = step + 1
    return steps
