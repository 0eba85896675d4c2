"""Order of an epoch in which consecutive triples have both ends in few partitions of the entities.

A table that is larger than the memory then needs only the rows of these partitions at a time, which are read and
written as whole ranges. Buckets of triples by the partitions of their ends are those of PyTorch-BigGraph (Lerer et al.
2019); the order in which partitions take each other's place is BETA (Mohoney et al. 2021, Marius, section 4).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from distkg.randomness import Purpose, stream
from distkg.sharding.shards import Shards

PARTITIONS = 64
BLOCKS = 8 * PARTITIONS
"""Ranges of rows of each rank; the partition of each is drawn anew for every epoch, so that any two entities meet."""
_PIECE = 1 << 16
SPARE = 2  # partitions in memory beside those in use: the next one, which is read, and the latest, which is written


def partitions_in_use(resident_share: float) -> int:
    """Return the number of partitions whose triples are visited at a time; all for a share of 1."""
    return PARTITIONS if resident_share >= 1 else max(2, int(resident_share * PARTITIONS) - SPARE)


def loads_of_epoch(resident_share: float) -> float:
    """Return how often the table is read in an epoch."""
    in_use = partitions_in_use(resident_share)
    return (in_use + len(buffer_states(in_use)) - 1) / PARTITIONS


@cache
def buffer_states(in_use: int) -> NDArray[np.int64]:
    """Return the partitions in use, one state after the other: [states, in_use].

    A state differs from the one before in one partition, and every two partitions are together in some state.
    """
    waiting = list(range(in_use, PARTITIONS))
    state = list(range(in_use))
    states = [state.copy()]
    while waiting:
        for place, partition in enumerate(waiting):  # all but the last stay until they have met every other one
            state[-1], waiting[place] = partition, state[-1]
            states.append(state.copy())
        fresh, waiting = waiting[: in_use - 1], waiting[in_use - 1 :]
        for place, partition in enumerate(fresh):
            state[place] = partition
            states.append(state.copy())
    return np.array(states)


@cache
def _first_states(in_use: int) -> NDArray[np.int16]:
    """Return the first state in which two partitions are together: [PARTITIONS, PARTITIONS]."""
    states = buffer_states(in_use)
    first = np.zeros((PARTITIONS, PARTITIONS), np.int16)
    for index in range(len(states) - 1, -1, -1):
        first[np.ix_(states[index], states[index])] = index
    return first


class EntityBuckets:
    """Partitions of the entities in each epoch, as a function of (seed, epoch, number of ranks).

    Every rank has the same share of each partition among its rows, so all ranks need the same partitions at a time.

    Attributes:
        resident_share: share of the entities that is in memory at a time, in (0, 1).
        states: partitions in use, as `buffer_states` returns them.
    """

    def __init__(self, entities: int, ranks: int, seed: int, resident_share: float) -> None:
        self._shards, self._seed, self.resident_share = Shards(entities, ranks), seed, resident_share
        self._in_use = partitions_in_use(resident_share)
        self.states = buffer_states(self._in_use)

    def first_states(self, epoch: int, head: NDArray[np.integer], tail: NDArray[np.integer]) -> NDArray[np.int16]:
        """Return the first state that has both ends of each triple: [n]."""
        first, partitions = _first_states(self._in_use), self._partitions(epoch)
        states = np.empty(len(head), np.int16)
        for low in range(0, len(head), _PIECE):  # local rows are counted in 8 bytes
            piece = slice(low, low + _PIECE)
            ends = [partitions[self._blocks_of(entities[piece])] for entities in (head, tail)]
            states[piece] = first[ends[0], ends[1]]
        return states

    def rows(self, epoch: int, states: slice, rank: int) -> NDArray[np.int64]:
        """Return the ranges of local rows of a rank that the partitions of these states have: [n, 2]."""
        used = np.isin(self._partitions(epoch), self.states[states])
        bounds = -(-np.arange(BLOCKS + 1) * self._shards.per_rank // BLOCKS)
        ranges = np.stack([bounds[:-1], bounds[1:]], 1)[used].clip(max=self._shards.count(rank))
        return ranges[ranges[:, 0] < ranges[:, 1]]

    def entities(self, epoch: int, state: int) -> NDArray[np.int64]:
        """Return the ranges of entities of a state: [n, 2], ascending."""
        size = self._shards.size
        states = slice(state, state + 1)
        return np.concatenate([self.rows(epoch, states, rank) + self._shards.range(rank)[0] for rank in range(size)])

    def _partitions(self, epoch: int) -> NDArray[np.int64]:
        """Return the partition of each block."""
        order = torch.randperm(BLOCKS, generator=stream(Purpose.PARTITIONS, self._seed, epoch))
        return order.numpy() % PARTITIONS

    def _blocks_of(self, entities: NDArray[np.integer]) -> NDArray[np.int64]:
        return entities.astype(np.int64) % self._shards.per_rank * BLOCKS // self._shards.per_rank
