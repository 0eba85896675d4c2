"""Batches of embedding training, as a function of (seed, epoch, step, rank).

Each rank holds its part of the training queries, and ``EpochOrder`` says which of them a step visits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from distkg.config import NegativesConfig
from distkg.data.store.graph_store import Store
from distkg.embedding.entity_buckets import EntityBuckets
from distkg.embedding.epoch_order import BucketedTriples, DistinctQueries, EpochOrder, Items, StridedItems
from distkg.graph.csr import expanded_ranges
from distkg.graph.directions import both_directions, query_keys
from distkg.kernels.jit import on_cpu
from distkg.kernels.merge_sorted import union_of_fixed_size
from distkg.negatives import (
    DrawRequest,
    FactKeys,
    GeneratedNegatives,
    Negatives,
    NegativeSource,
    Queries,
    TrainingProgress,
    known_facts,
)
from distkg.objectives import Answers
from distkg.randomness import CounterNumbers, Purpose, mixed_seed, stream
from distkg.sharding.device_copies import moved
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards

TOGETHER = 8  # steps whose negatives are requested in one message
ONLY_REPORTED = {"only_reported": True}  # metadata of a field that no step reads
REPORTED = 64  # queries of a step whose negatives are kept for reports
MARKED_SHARE = 8  # ids are marked among all entities if there is one for as many entities


Directions = tuple[Tensor | slice, Tensor | slice]
"""Places of tail queries, whose relations are below R, and of head queries."""


class Batch(Protocol):
    """Batch as the training loop sees it.

    Attributes:
        ids: int64 [u] entities whose rows it uses, sorted and unique; on a device other than the CPU, the last may be
            repeated.
        relation: int64 [b] in [0, 2R), relations of its queries.
    """

    @property
    def ids(self) -> Tensor: ...

    @property
    def relation(self) -> Tensor: ...


class Batches(Protocol):
    """Source of the batches of an epoch.

    Attributes:
        order: triples or queries of each step.
        steps: steps per epoch, the same on every rank.
        triples: number of training triples of the graph.
        ahead: whether ``window`` depends on its arguments alone and is not collective, so that another thread may call
            it while a step computes.
    """

    order: EpochOrder
    steps: int
    triples: int
    ahead: bool

    def window(self, epoch: int, first: int, last: int) -> Sequence[Batch]:
        """Make the batches of the steps first … last - 1 on this rank; collective."""
        ...

    def begin(self, batch: Any) -> None:
        """Note that the step of a batch begins, for reports."""
        ...


@dataclass(frozen=True)
class DrawnNegatives:
    """Negatives of a batch as reports show them.

    Attributes:
        queries: the first ``REPORTED`` queries.
        negatives: their negatives.
        removed: int64 scalar, number of negatives of the batch that are excluded as known facts.
    """

    queries: Queries
    negatives: Negatives
    removed: Tensor


@dataclass(frozen=True)
class SampledBatch:
    """Batch of queries with answers and negatives; entities are indices into ``ids``.

    Attributes:
        ids: int64 [u] entities, sorted and unique; of batches made on a device, the last may be repeated.
        anchor, answer: int64 [b], indices into ids.
        relation: int64 [b] in [0, 2R).
        negatives: int64 [rows, K], indices into ids; ``sharing`` consecutive queries share a row.
        mask: bool [b, K], True for negatives to exclude; None if all are used.
        queries: number of queries of this step over all ranks.
        made: negatives generated per query, with entities as indices into ids; None if there are none.
        drawn: what reports say of the negatives; None if they are shared.
    """

    ids: Tensor
    anchor: Tensor
    answer: Tensor
    relation: Tensor
    negatives: Tensor
    sharing: int
    mask: Tensor | None
    queries: int
    made: GeneratedNegatives | None = None
    drawn: DrawnNegatives | None = field(default=None, metadata=ONLY_REPORTED)

    @property
    def directions(self) -> Directions:
        """Return the halves of the queries: first those for tails, then those for heads."""
        half = len(self.anchor) // 2
        return slice(0, half), slice(half, None)


class SampledBatches:
    """Batches with sampled negatives: each triple of this rank's part gives a tail and a head query.

    Attributes:
        source: negative source.
        count: number of negatives per query.
        latest: ``drawn`` of the latest step; None before the first one, or if negatives are shared.
        made_on_device: whether batches are made on the ranks' device.
    """

    def __init__(
        self,
        store: Store,
        source: NegativeSource,
        negatives: NegativesConfig,
        batch_size: int,
        epochs: int,
        seed: int,
        ranks: Ranks,
        time_gone: Callable[[], float] = lambda: 0.0,
        first: int = 0,
        resident_share: float = 1.0,
        *,
        on_device: bool = False,
    ) -> None:
        """Create the batches of the training triples from row ``first`` on.

        Args:
            time_gone: function that returns the elapsed share of the run's time limit, equal on every rank.
            resident_share: as in `Division`.
            on_device: make the batches on the ranks' device, which the host does not wait for: the triples, the order
                of an epoch and the known facts are copied there once. Needs a source that draws ``on_tensors``, without
                actors, and a ``resident_share`` of 1. Negatives are drawn by ``CounterNumbers``, so they are others
                than those of batches made on the host, and their ids end with repetitions of the largest.
        """
        part = store.triples_part("train", ranks.rank, ranks.size, first)
        self._made_on, self.made_on_device = ranks.device if on_device else torch.device("cpu"), on_device
        self._tensor_source = source.on_tensors() if on_device else None
        self._local = torch.from_numpy(part).to(self._made_on)
        self._relations = store.num_relations
        self.source, self._negatives, self._seed, self._ranks = source, negatives, seed, ranks
        self.count = negatives.count
        self._known_mask = self._known_facts() if negatives.filter else None
        self._sharing = negatives.chunk_size if negatives.shared and not source.looks_at_queries else 1
        self.triples = store.manifest.triples["train"] - first
        items = BucketedTriples(self.triples, 1, ranks, part, store.num_entities)
        buckets = EntityBuckets(store.num_entities, ranks.size, seed, resident_share) if resident_share < 1 else None
        self.order = EpochOrder(items, items.counts(), batch_size, seed, ranks, buckets, self._made_on)
        self.steps = self.order.steps
        self._all_steps, self._time_gone = max(epochs * self.steps, 1), time_gone
        self._ahead = negatives.pool.depth if negatives.pool.actors else None
        self._removed = torch.zeros((), dtype=torch.int64, device=ranks.device)
        alone = all(part.requires == "nothing" for part in source.parts()) and self._ahead is None
        # A table on disk reads its rows in the order of the steps; a device makes batches while the host goes on.
        self.ahead = alone and buckets is None and not on_device
        self.latest: DrawnNegatives | None = None
        self._expected = 0  # first step, counted over all epochs, whose negatives are not requested yet
        self._announced: dict[int, Queries] = {}  # queries of requested steps, by the same count, until their step

    def _known_facts(self) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
        """Return the function that masks negatives which are known facts, where batches are made."""
        known = self.source.graph.known
        if self._tensor_source is None:
            return partial(known_facts, known)
        return FactKeys(known, self.source.entities, self._made_on).mask

    def window(self, epoch: int, first: int, last: int) -> Sequence[Batch]:
        batches = [self._batch(epoch, step) for step in range(first, last)]
        return batches if self._tensor_source is not None else moved(batches, self._ranks.device)

    def _queries(self, epoch: int, step: int) -> Queries:
        """Return this rank's queries of a step: tail queries, then head queries."""
        head, relation, tail = self._local[self.order.chosen(epoch, step)].long().unbind(1)
        return Queries(*both_directions(head, relation, tail, num_relations=self._relations))

    def _batch(self, epoch: int, step: int) -> SampledBatch:
        queries = self._announced.pop(epoch * self.steps + step, None) or self._queries(epoch, step)
        head, tail = queries.anchor.chunk(2)
        negatives, removed = self._negatives_of(queries, epoch, step)
        generated = negatives.made.entities if negatives.made is not None else None
        used = [head, tail, negatives.entities, *([] if generated is None else [generated])]
        ids, places = unique_places(torch.cat([entities.flatten() for entities in used]), self.source.entities)
        placed = places.split([entities.numel() for entities in used])
        drawn = DrawnNegatives(queries[:REPORTED], negatives.first(REPORTED), removed) if self._sharing == 1 else None
        return SampledBatch(
            ids=ids,
            anchor=torch.cat([placed[0], placed[1]]),
            answer=torch.cat([placed[1], placed[0]]),
            relation=queries.relation,
            negatives=placed[2].view(negatives.entities.shape),
            sharing=self._sharing,
            mask=negatives.mask,
            queries=2 * sum(self.order.sizes(epoch, step)),
            made=None if negatives.made is None else negatives.made.at_places(placed[-1]),
            drawn=drawn,
        )

    def _progress(self, epoch: int, step: int) -> TrainingProgress:
        step_number = epoch * self.steps + step
        progress = max(step_number / self._all_steps, self._time_gone())
        return TrainingProgress(step_number / self.steps, min(1.0, progress), step_number)

    def _expect(self, epoch: int, step: int, ahead: int) -> None:
        """Request the negatives of the next steps, at least ``ahead`` of them, from the source in advance.

        Several steps share a message, since the cost of a message hardly depends on its size.
        """
        now, steps_per_message = epoch * self.steps + step, min(TOGETHER, ahead)
        end = min((now + ahead) // steps_per_message * steps_per_message + steps_per_message, self._all_steps)
        if end > self._expected:
            self.source.prefetch(
                [self._draw_request(step_number) for step_number in range(max(self._expected, now), end)]
            )
            self._expected = end

    def _draw_request(self, done: int) -> DrawRequest:
        """Return the request for the negatives of a step, given the number of steps before it."""
        epoch, step = divmod(done, self.steps)
        seed = mixed_seed(Purpose.NEGATIVES, self._seed, epoch, step, self._ranks.rank)
        queries = self._announced[done] = self._queries(epoch, step)
        return DrawRequest(self._progress(epoch, step), queries, self._negatives.count, seed)

    def _negatives_of(self, queries: Queries, epoch: int, step: int) -> tuple[Negatives, Tensor]:
        """Draw the negatives of a step, and return them with the number of known facts among them.

        Their ``mask`` is bool [b, K] per query, True to exclude; None if all are used.
        """
        sharing = self._sharing
        seed = Purpose.NEGATIVES, self._seed, epoch, step, self._ranks.rank
        self.source.advance(self._progress(epoch, step))
        self.source.restrict(self.order.resident_entities(epoch, step))
        if self._ahead is not None:
            self._expect(epoch, step, self._ahead)
        asking, count = queries[::sharing], self._negatives.count
        if self._tensor_source is None:
            drawn = self.source.draw(asking, count, stream(*seed))
        else:
            drawn = self._tensor_source.draw_on(asking, count, CounterNumbers(mixed_seed(*seed), self._made_on))
        mask = None if drawn.mask is None else drawn.mask.repeat_interleave(sharing, 0)[: len(queries)]
        removed = torch.zeros((), dtype=torch.int64, device=self._made_on)
        if self._known_mask is not None:
            known = self._known_mask(queries.anchor, queries.relation, drawn.entities, sharing)
            removed = known.sum()
            mask = known if mask is None else mask | known
        return Negatives(drawn.entities, mask, drawn.made), removed

    def begin(self, batch: SampledBatch) -> None:
        self.latest = batch.drawn
        if batch.drawn is not None:
            self._removed += batch.drawn.removed

    def take_removed(self) -> int:
        """Return and reset the number of negatives that were excluded as known facts."""
        removed = int(self._removed)
        self._removed.zero_()
        return removed


@dataclass(frozen=True)
class QuerySampledBatch:
    """Batch of queries with one answer each, of which a sample is compared with all entities.

    Attributes:
        ids: int64 [u] entities, sorted and unique.
        anchor, answer: int64 [b], indices into ids.
        relation: int64 [b] in [0, 2R).
        queries: number of queries of this step over all ranks.
        sampled: int64 [s], indices of the sampled queries in the batch, sorted.
        width: largest number of sampled queries of a rank, to which gathered queries are padded.
        live: float32 [ranks · width], 1 for a sampled query and 0 for padding.
        tail_queries, head_queries: int64, indices of the queries in the batch by direction.
    """

    ids: Tensor
    anchor: Tensor
    answer: Tensor
    relation: Tensor
    queries: int
    sampled: Tensor
    width: int
    live: Tensor
    tail_queries: Tensor
    head_queries: Tensor


class QuerySampledBatches:
    """Batches in which each triple of this rank's part gives two queries, and a share of the queries is sampled."""

    def __init__(self, store: Store, share: float, batch_size: int, seed: int, ranks: Ranks, first: int = 0) -> None:
        """Create the batches of the training triples from row ``first`` on."""
        self._share, self._seed, self._ranks, self.ahead = share, seed, ranks, True
        self._entities, self._relations = store.num_entities, store.num_relations
        self._anchor, self._relation, _, self._answer = map(torch.from_numpy, _single_queries(store, ranks, first))
        self.triples = store.manifest.triples["train"] - first
        items = StridedItems(self.triples, 2, ranks)
        self.order = EpochOrder(items, items.counts(), 2 * batch_size, seed, ranks)
        self.steps = self.order.steps

    def window(self, epoch: int, first: int, last: int) -> Sequence[Batch]:
        return moved([self._batch(epoch, step) for step in range(first, last)], self._ranks.device)

    def begin(self, batch: Batch) -> None:
        """Do nothing: there is nothing to report."""

    def _batch(self, epoch: int, step: int) -> QuerySampledBatch:
        chosen = self.order.chosen(epoch, step)
        sizes = self.order.sizes(epoch, step)
        counts = [self._sampled_of(size) for size in sizes]
        # The order is random already, so the first queries are a random sample that differs in every epoch.
        sampled = torch.arange(counts[self._ranks.rank])
        ids, places = unique_places(torch.cat([self._anchor[chosen], self._answer[chosen]]), self._entities)
        anchor, answer = places.chunk(2)
        width = max(counts)
        live = (torch.arange(width) < torch.tensor(counts)[:, None]).float().flatten()
        return QuerySampledBatch(
            ids=ids,
            anchor=anchor,
            answer=answer,
            relation=self._relation[chosen],
            queries=sum(sizes),
            sampled=sampled,
            width=width,
            live=live,
            tail_queries=(self._relation[chosen] < self._relations).nonzero().flatten(),
            head_queries=(self._relation[chosen] >= self._relations).nonzero().flatten(),
        )

    def _sampled_of(self, queries: int) -> int:
        """Return the number of sampled queries: at least one, unless ``queries`` or the share is 0."""
        return min(queries, max(1, round(self._share * queries))) if self._share else 0


@dataclass(frozen=True)
class AllEntitiesBatch:
    """Batch of queries of this rank, and the answers of all ranks' queries among this rank's entities.

    Attributes:
        ids: int64 [u] anchors, sorted and unique.
        anchor: int64 [b], indices into ids.
        relation: int64 [b] in [0, 2R).
        count: float32 [b], number of answers of each query.
        width: largest number of queries of a rank, to which gathered queries are padded.
        answers: answers of all ranks' queries that are rows of this rank.
        asked_relation: int64 [a], relation of the query of each answer.
        tail_answers, head_answers: int64, indices of the answers by the direction of their query.
    """

    ids: Tensor
    anchor: Tensor
    relation: Tensor
    count: Tensor
    width: int
    answers: Answers
    asked_relation: Tensor
    tail_answers: Tensor
    head_answers: Tensor


class AllEntitiesBatches:
    """Batches for objectives over all entities: queries with all their training answers (grouped), or with one."""

    def __init__(self, store: Store, group: bool, batch_size: int, seed: int, ranks: Ranks, first: int = 0) -> None:
        """Create the batches of the queries of the training triples from row ``first`` on."""
        self._ranks, self.ahead = ranks, ranks.size == 1  # ranks tell each other their answers
        self._shards, self._relations = Shards(store.num_entities, ranks.size), store.num_relations
        self.triples = store.manifest.triples["train"] - first
        queries = _local_queries(store, ranks, first) if group else _single_queries(store, ranks, first)
        self._anchor, self._relation, self._offsets, self._answers = map(torch.from_numpy, queries)
        counts = ranks.all_gather(torch.tensor([len(self._anchor)])).tolist()
        items: Items = StridedItems(self.triples, 2, ranks)
        if group:
            items = DistinctQueries(queries[0], queries[1], store.num_relations)
        # A triple gives two queries. With grouping, the batch size is the number of distinct queries.
        self.order = EpochOrder(items, counts, batch_size if group else 2 * batch_size, seed, ranks)
        self.steps = self.order.steps

    def window(self, epoch: int, first: int, last: int) -> Sequence[Batch]:
        return moved([self._batch(epoch, step) for step in range(first, last)], self._ranks.device)

    def begin(self, batch: Batch) -> None:
        """Do nothing: there is nothing to report."""

    def _batch(self, epoch: int, step: int) -> AllEntitiesBatch:
        chosen = self.order.chosen(epoch, step).sort().values
        width = max(self.order.sizes(epoch, step))
        starts, ends = self._offsets[chosen], self._offsets[chosen + 1]
        query, place = map(torch.from_numpy, expanded_ranges(starts.numpy(), ends.numpy()))
        entity = self._answers[place].long()
        ids, anchor = torch.unique(self._anchor[chosen].long(), return_inverse=True)
        relation = self._relation[chosen].long()
        answers, asked = self._owned(query, entity, relation[query], width)
        return AllEntitiesBatch(
            ids=ids,
            anchor=anchor,
            relation=relation,
            count=(ends - starts).float(),
            width=width,
            answers=answers,
            asked_relation=asked,
            tail_answers=(asked < self._relations).nonzero().flatten(),
            head_answers=(asked >= self._relations).nonzero().flatten(),
        )

    def _owned(self, query: Tensor, entity: Tensor, relation: Tensor, width: int) -> tuple[Answers, Tensor]:
        """Select the answers of all ranks' queries that are rows of this rank, with the relations asked; collective.

        Ranks tell each other through host memory: how many there are decides shapes, for which a device would have to
        be waited for.
        """
        ranks = self._ranks
        longest = torch.tensor(len(query))
        ranks.all_reduce(longest, "max")
        padded = torch.full((int(longest), 3), -1, dtype=torch.int64)
        padded[: len(query)] = torch.stack([query + ranks.rank * width, entity, relation], 1)
        everyone = ranks.all_gather(padded)
        everyone = everyone[everyone[:, 0] >= 0]
        count = torch.bincount(everyone[:, 0], minlength=width * ranks.size).float()
        low, high = self._shards.range(ranks.rank)
        own = everyone[(everyone[:, 1] >= low) & (everyone[:, 1] < high)]
        return Answers(own[:, 0].contiguous(), own[:, 1] - low, count), own[:, 2].contiguous()


QueryArrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _local_queries(store: Store, ranks: Ranks, first: int) -> QueryArrays:
    """Collect this rank's distinct queries of the triples from row ``first`` on, with all their answers in train.

    A query's rank is (anchor + relation) mod ranks.
    """
    relations = store.num_relations
    wanted = np.empty(0, np.int64)
    for anchor, relation, _ in _own_queries(store, ranks, first) if first else ():
        wanted = np.union1d(wanted, query_keys(anchor, relation, relations))
    parts = [np.empty((0, 3), np.int32)]
    for anchor, relation, answer in _own_queries(store, ranks, 0):
        queries = np.stack([anchor, relation, answer], axis=1)
        if first:  # an answer that is left out would count as a wrong one
            queries = queries[np.isin(query_keys(anchor, relation, relations), wanted)]
        parts.append(queries)
    return _group(np.concatenate(parts), relations)


def _own_queries(store: Store, ranks: Ranks, first: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    relations = store.num_relations
    for triples in store.iter_triples(["train"], first=first):
        anchor, relation, answer = both_directions(*triples.T, num_relations=relations)
        own = (anchor + relation % relations) % ranks.size == ranks.rank
        yield anchor[own], relation[own], answer[own]


def _group(queries: np.ndarray, relations: int) -> QueryArrays:
    """Sort (anchor, relation, answer) rows and group them by query."""
    key = query_keys(queries[:, 0], queries[:, 1], relations)
    order = np.lexsort((queries[:, 2], key))
    unique, starts = np.unique(key[order], return_index=True)
    offsets = np.append(starts, len(key)).astype(np.int64)
    anchor, relation = np.divmod(unique, 2 * relations)
    return anchor, relation, offsets, queries[order, 2].astype(np.int64)


def _single_queries(store: Store, ranks: Ranks, first: int) -> QueryArrays:
    """Return both queries of each triple of this rank's part from row ``first`` on, with one answer each."""
    part = store.triples_part("train", ranks.rank, ranks.size, first).astype(np.int64)
    anchor, relation, answers = both_directions(*part.T, num_relations=store.num_relations)
    return anchor, relation, np.arange(len(anchor) + 1), answers


def unique_places(ids: Tensor, entities: int) -> tuple[Tensor, Tensor]:
    """Return sorted unique ids and the index of each id among them, like ``torch.unique(return_inverse=True)``.

    If ids are many relative to the entities, marking is faster than sorting. On a device, where the number of unique
    ids is not known to the host, they are as many as there may be, and end with repetitions of the largest.
    """
    if not on_cpu(ids):
        return union_of_fixed_size(ids, min(len(ids), entities))
    if len(ids) * MARKED_SHARE < entities:
        unique, places = torch.unique(ids, return_inverse=True)
        return unique, places
    marks = torch.zeros(entities, dtype=torch.bool)
    marks[ids] = True
    unique = marks.nonzero().flatten()
    place = torch.empty(entities, dtype=torch.int64)
    place[unique] = torch.arange(len(unique))
    return unique, place[ids]
