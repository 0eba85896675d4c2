"""Order of the items (triples or queries) of an epoch, cut into steps.

Each rank visits its part of the items in a random order, cut into the same number of steps on every rank. Triples may
be sorted by the buckets of their entities (`entity_buckets`); their order within a bucket is random then. An epoch that
other numbers of workers have begun is continued with the items that they left: the random order is a function of (seed,
epoch, rank), so what each of those workers visited is computed again, from the segments of the epoch that a checkpoint
records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distkg.embedding.entity_buckets import EntityBuckets
from distkg.graph.directions import query_keys
from distkg.randomness import Purpose, stream
from distkg.sharding.device_copies import moved
from distkg.sharding.ranks import Ranks
from distkg.training.learner import Division, Segment

PIECE = 1 << 17  # ids to each rank in one message: memory that ranks share is kept until the end of the run


class Items(Protocol):
    """Items of an epoch: they have ids, and any number of ranks can divide them."""

    def ids(self) -> np.ndarray:
        """Return the ids of this rank's items, int64 [n], ascending: the local index of an item is its place here."""
        ...

    def rank_of(self, ids: np.ndarray, size: int) -> np.ndarray:
        """Return the rank of each of these items among ``size`` ranks: int64, as ``ids``."""
        ...

    def keys(self, epoch: int, division: Division) -> np.ndarray | None:
        """Return the keys by which a division sorts this rank's items: integers [n], as ``ids``; None for no keys."""
        ...


@dataclass(frozen=True)
class StridedItems:
    """Rows that are dealt out to ranks in turn, each once, or as several items.

    Attributes:
        rows: number of rows; row i belongs to rank i mod size.
        copies: items of each row; local indices go over all rows of the rank before the next copy.
        ranks: ranks, of which one has these items.
    """

    rows: int
    copies: int
    ranks: Ranks

    def counts(self) -> list[int]:
        """Return the number of items of every rank."""
        return [self.copies * len(range(rank, self.rows, self.ranks.size)) for rank in range(self.ranks.size)]

    def ids(self) -> np.ndarray:
        own = np.arange(self.ranks.rank, self.rows, self.ranks.size)
        return np.concatenate([own + copy * self.rows for copy in range(self.copies)])

    def rank_of(self, ids: np.ndarray, size: int) -> np.ndarray:
        return ids % self.rows % size

    def keys(self, epoch: int, division: Division) -> np.ndarray | None:
        return None


@dataclass(frozen=True)
class BucketedTriples(StridedItems):
    """Triples that are dealt out to ranks in turn, and sorted by the buckets of their entities if a division says so.

    Attributes:
        triples: this rank's triples, int32 [n, 3].
        entities: number of entities.
    """

    triples: np.ndarray
    entities: int

    def keys(self, epoch: int, division: Division) -> np.ndarray | None:
        if division.resident_share >= 1:
            return None
        buckets = EntityBuckets(self.entities, division.workers, division.seed, division.resident_share)
        return buckets.first_states(epoch, self.triples[:, 0], self.triples[:, 2])


@dataclass(frozen=True)
class DistinctQueries:
    """Distinct queries of this rank; their ids are their keys, and rank (anchor + relation mod R) mod size has a query.

    Attributes:
        anchor, relation: int64 [n], in ascending order of (anchor, relation).
        relations: number of relations R.
    """

    anchor: np.ndarray
    relation: np.ndarray
    relations: int

    def ids(self) -> np.ndarray:
        return query_keys(self.anchor, self.relation, self.relations)

    def rank_of(self, ids: np.ndarray, size: int) -> np.ndarray:
        anchor, relation = np.divmod(ids, 2 * self.relations)
        return (anchor + relation % self.relations) % size

    def keys(self, epoch: int, division: Division) -> np.ndarray | None:
        return None


@dataclass(frozen=True)
class Portions:
    """Partition of the ``counts[rank]`` items of each rank into nearly equal portions: steps first … steps - 1."""

    counts: Sequence[int]
    steps: int
    first: int = 0

    def bounds(self, rank: int, step: int) -> tuple[int, int]:
        """Return the places in a rank's order at which the portion of a step begins and ends."""
        count, steps, done = self.counts[rank], self.steps - self.first, step - self.first
        return done * count // steps, (done + 1) * count // steps

    def sizes(self, step: int) -> list[int]:
        """Return the number of items of every rank at a step."""
        return [high - low for low, high in (self.bounds(rank, step) for rank in range(len(self.counts)))]


@dataclass(frozen=True)
class _Order:
    """Order of this rank's items in an epoch.

    Attributes:
        places: int64 [n], local indices.
        ends: number of items up to each key, if they are sorted by keys.
    """

    places: Tensor
    ends: np.ndarray

    @classmethod
    def sorted(cls, places: Tensor, keys: np.ndarray | None) -> _Order:
        """Sort a random order by the keys of all local items, if there are any."""
        if keys is None:
            return cls(places, np.empty(0, np.int64))
        return cls(_sorted(places, keys), np.cumsum(np.bincount(keys[places.numpy()])))

    def key(self, place: int) -> int:
        """Return the key of the item at a place."""
        return min(int(np.searchsorted(self.ends, place, side="right")), len(self.ends) - 1)


@dataclass(frozen=True)
class _Rest:
    """Rest of an epoch: this rank's order of its remaining items, and the portions of all ranks."""

    epoch: int
    order: _Order
    portions: Portions


class EpochOrder:
    """Items of each step of each epoch, on this rank.

    Caches the orders of neighbouring epochs, since negatives are requested in advance.

    Attributes:
        items: number of items of an epoch, over all ranks.
        steps: number of steps of an epoch.
    """

    def __init__(
        self,
        items: Items,
        counts: Sequence[int],
        batch_size: int,
        seed: int,
        ranks: Ranks,
        buckets: EntityBuckets | None = None,
        device: torch.device | None = None,
    ) -> None:
        """``counts`` are the numbers of items of all ranks; ``batch_size`` the items of a step over all ranks.
        ``buckets`` are those by which ``items`` are sorted; None for a random order. ``device`` is that of ``chosen``:
        an order is computed on the host, and copied there once an epoch; default: the CPU."""
        self.items = sum(counts)
        self.steps = max(1, -(-self.items // batch_size))
        share = 1.0 if buckets is None else buckets.resident_share
        self._division = Division(ranks.size, self.steps, self.items, seed, share)
        self._items, self._ranks, self._buckets = items, ranks, buckets
        self._device = device or torch.device("cpu")
        self._portions = Portions(counts, self.steps)
        self._cache: dict[int, _Order] = {}
        self._rest: _Rest | None = None

    def chosen(self, epoch: int, step: int) -> Tensor:
        """Return the local indices of this rank's items of a step: int64, in random order."""
        low, high = self._portions_of(epoch).bounds(self._ranks.rank, step)
        return self._order_of(epoch).places[low:high]

    def resident_rows(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the ranges of this rank's rows that a step and the one before it use, and those of the state of the
        buckets after it: int64 [n, 2] each; None for all rows."""
        if self._buckets is None:
            return None
        (first, _), (_, last) = (self._states(epoch, each) for each in (max(0, step - 1), step))
        needed, following = slice(first, last + 1), slice(last + 1, last + 2)
        return (
            self._buckets.rows(epoch, needed, self._ranks.rank),
            self._buckets.rows(epoch, following, self._ranks.rank),
        )

    def resident_entities(self, epoch: int, step: int) -> np.ndarray | None:
        """Return the ranges of entities among which a step trains first: int64 [n, 2], ascending; None for all."""
        return None if self._buckets is None else self._buckets.entities(epoch, self._states(epoch, step)[0])

    def _states(self, epoch: int, step: int) -> tuple[int, int]:
        """Return the states of the buckets at this rank's first and last item of a step."""
        order, (low, high) = self._order_of(epoch), self._portions_of(epoch).bounds(self._ranks.rank, step)
        return order.key(low), order.key(max(low, high - 1))

    def sizes(self, epoch: int, step: int) -> list[int]:
        """Return the number of items of every rank at a step that is now to be done."""
        if self._rest is not None and epoch > self._rest.epoch:
            self._rest = None  # its order is as large as the part of this rank
        return self._portions_of(epoch).sizes(step)

    def continue_epoch(self, epoch: int, first: int, segments: Sequence[Segment]) -> None:
        """Divide what the segments of an epoch left of its items among the steps from ``first`` on; collective."""
        ranks = self._ranks
        left = torch.from_numpy(remaining_items(self._items, ranks, epoch, segments))
        counts = ranks.all_gather(torch.tensor([len(left)])).tolist()
        order = self._new_order(epoch, left, len(segments))
        self._rest = _Rest(epoch, order, Portions(counts, self.steps, first))

    def _portions_of(self, epoch: int) -> Portions:
        return self._portions if self._rest is None or epoch != self._rest.epoch else self._rest.portions

    def _order_of(self, epoch: int) -> _Order:
        if self._rest is not None and epoch == self._rest.epoch:
            return self._rest.order
        if epoch not in self._cache:
            latest = {cached: order for cached, order in self._cache.items() if abs(cached - epoch) == 1}
            self._cache = {**latest, epoch: self._new_order(epoch, None, 0)}
        return self._cache[epoch]

    def _new_order(self, epoch: int, left: Tensor | None, index: int) -> _Order:
        """Return the order of the items that are left, by default all, after ``index`` segments."""
        count = self._portions.counts[self._ranks.rank] if left is None else len(left)
        places = _permutation(count, self._division.seed, epoch, self._ranks.rank, index)
        keys = self._items.keys(epoch, self._division)
        order = _Order.sorted(places if left is None else left[places], keys)
        (order,) = moved([order], self._device)
        return order


def remaining_items(items: Items, ranks: Ranks, epoch: int, segments: Sequence[Segment]) -> np.ndarray:
    """Return the local indices of the items of this rank that no segment of an epoch has visited; collective.

    A present rank stands for each rank of a segment and receives the ids that it had left. All present ranks do so at
    the same time for as many of the earlier ones, so that a rank holds its own part and that of one earlier rank.

    Returns:
        int64, ascending.
    """
    ids = items.ids()
    left = np.ones(len(ids), dtype=bool)
    for index, segment in enumerate(segments):
        own, ends = _by_rank(items.rank_of(ids, segment.division.workers), left)
        keys = items.keys(epoch, segment.division)
        for base in range(0, _largest(len(ends) - 1, ranks), ranks.size):
            places = np.minimum(range(base, base + ranks.size + 1), len(ends) - 1)
            parts = [own[low:high] for low, high in pairwise(ends[places])]
            received = _swapped([torch.from_numpy(ids[part]) for part in parts], ranks)
            sorted_by = None if keys is None else _swapped([torch.from_numpy(keys[part]) for part in parts], ranks)
            visited = _visited(received, sorted_by, segment, epoch, base + ranks.rank, index)
            answers = _swapped(visited.split([len(part) for part in received]), ranks)
            for part, answer in zip(parts, answers, strict=True):
                left[part] = ~answer.bool().numpy()
    return np.flatnonzero(left)


def _by_rank(owners: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the items that are left, by their rank and then ascending, and where each rank's begin."""
    counts = np.bincount(owners[left])
    order = np.argsort(owners, kind="stable")
    return order[left[order]], np.append(0, np.cumsum(counts))


def _visited(
    parts: Sequence[Tensor], keys: Sequence[Tensor] | None, segment: Segment, epoch: int, rank: int, index: int
) -> Tensor:
    """Return which of the items that a rank had left a segment visited: uint8 [n], in the order of ``parts``.

    Args:
        parts: ids of the items, ascending in each part.
        keys: keys by which the segment sorted the items, as ``parts``; None if it did not.
        index: number of earlier segments of the epoch.
    """
    count = sum(map(len, parts))
    _, done = Portions([count], segment.division.steps, segment.first).bounds(0, segment.last - 1)
    places = _permutation(count, segment.division.seed, epoch, rank, index)
    if len(parts) > 1:
        places = torch.from_numpy(np.argsort(torch.cat(list(parts)).numpy(), kind="stable"))[places]
    if keys is not None:
        places = _sorted(places, torch.cat(list(keys)).numpy())
    visited = torch.zeros(count, dtype=torch.uint8)
    visited[places[:done]] = 1
    return visited


def _sorted(places: Tensor, keys: np.ndarray) -> Tensor:
    """Sort places stably by their keys."""
    return places[torch.from_numpy(np.argsort(keys[places.numpy()], kind="stable"))]


def _permutation(count: int, seed: int, epoch: int, rank: int, index: int) -> Tensor:
    """Return the random order of a rank's items in the segment of an epoch with ``index`` segments before it."""
    later = (index,) if index else ()  # an epoch without a change of workers is one segment
    return torch.randperm(count, generator=stream(Purpose.ORDER, seed, epoch, rank, *later))


def _largest(value: int, ranks: Ranks) -> int:
    """Return the largest value of all ranks; collective."""
    largest = torch.tensor(value)
    ranks.all_reduce(largest, "max")
    return int(largest)


def _swapped(parts: Sequence[Tensor], ranks: Ranks) -> list[Tensor]:
    """Send ``parts[w]`` [n] to rank w, and return the parts from all ranks, in their order; collective."""
    if ranks.size == 1:
        return list(parts)
    lengths = torch.tensor([len(part) for part in parts])
    counts = ranks.all_gather(lengths).view(ranks.size, ranks.size)
    received = [parts[0].new_empty(count) for count in counts[:, ranks.rank].tolist()]
    for low in range(0, int(counts.max()), PIECE):
        pieces = [part[low : low + PIECE] for part in parts]
        places = [part[low : low + PIECE] for part in received]
        inp = torch.cat(pieces)
        out = inp.new_empty(sum(map(len, places)))
        ranks.all_to_all(out, inp, list(map(len, places)), list(map(len, pieces)))
        for place, piece in zip(places, out.split(list(map(len, places))), strict=True):
            place.copy_(piece)
    return received
