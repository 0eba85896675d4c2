"""An epoch that several numbers of workers train on, one after the other, visits each of its items once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from threaded_ranks import on_threads

from distkg.config import NegativesConfig
from distkg.config.sections import PoolConfig
from distkg.data.store.graph_store import Store
from distkg.embedding import epoch_order
from distkg.embedding.batches import (
    AllEntitiesBatch,
    AllEntitiesBatches,
    Batches,
    QuerySampledBatch,
    QuerySampledBatches,
    SampledBatch,
    SampledBatches,
)
from distkg.embedding.entity_buckets import EntityBuckets
from distkg.embedding.epoch_order import BucketedTriples, DistinctQueries, EpochOrder, Items, StridedItems
from distkg.negatives import DrawRequest, TrainingGraph, make_source
from distkg.randomness import Purpose, stream
from distkg.sharding.ranks import Ranks
from distkg.training.learner import Division, Segment

RELATIONS = 3
ENTITIES = 150
Query = tuple[int, int]


@dataclass(frozen=True)
class Rows:
    """Rows 0 … count - 1, each ``copies`` times; row i of copy c has the id i + c · count."""

    count: int
    copies: int

    def of(self, ranks: Ranks) -> tuple[Items, list[int]]:
        items = StridedItems(self.count, self.copies, ranks)
        return items, items.counts()

    def all(self) -> list[int]:
        return list(range(self.count * self.copies))


@dataclass(frozen=True)
class Queries:
    """Queries (anchor, relation), of which rank (anchor + relation mod R) mod size has each."""

    queries: frozenset[Query]

    def of(self, ranks: Ranks) -> tuple[Items, list[int]]:
        parts: list[list[Query]] = [[] for _ in range(ranks.size)]
        for anchor, relation in sorted(self.queries):
            parts[(anchor + relation % RELATIONS) % ranks.size].append((anchor, relation))
        own = np.array(parts[ranks.rank], dtype=np.int64).reshape(-1, 2)
        return DistinctQueries(own[:, 0], own[:, 1], RELATIONS), [len(part) for part in parts]

    def all(self) -> list[int]:
        return [anchor * 2 * RELATIONS + relation for anchor, relation in self.queries]


@dataclass(frozen=True)
class Triples:
    """Triples of 150 entities, which a group may sort by their buckets."""

    ends: tuple[tuple[int, int], ...]

    def of(self, ranks: Ranks) -> tuple[Items, list[int]]:
        own = np.array([(head, 0, tail) for head, tail in self.ends], np.int32)[ranks.rank :: ranks.size]
        items = BucketedTriples(len(self.ends), 1, ranks, own, ENTITIES)
        return items, items.counts()

    def all(self) -> list[int]:
        return list(range(len(self.ends)))


Kind = Rows | Queries | Triples
KINDS = st.one_of(
    st.builds(Triples, st.lists(st.tuples(*[st.integers(0, 149)] * 2), min_size=1, max_size=60).map(tuple)),
    st.builds(Rows, st.integers(1, 60), st.sampled_from([1, 2])),
    st.builds(
        Queries,
        st.frozensets(st.tuples(st.integers(0, 20), st.integers(0, 2 * RELATIONS - 1)), min_size=1, max_size=60),
    ),
)


@dataclass(frozen=True)
class Group:
    """Workers that train for a share of what is left of the steps."""

    workers: int
    batch_size: int
    seed: int
    share: float
    resident_share: float = 1.0

    def buckets(self, kind: Kind) -> EntityBuckets | None:
        if self.resident_share == 1 or not isinstance(kind, Triples):
            return None
        return EntityBuckets(ENTITIES, self.workers, self.seed, self.resident_share)


GROUPS = st.lists(
    st.builds(
        Group,
        st.integers(1, 5),
        st.integers(1, 25),
        st.sampled_from([0, 0, 0, 1 << 40]),
        st.floats(0, 1),
        st.sampled_from([1.0, 0.2, 0.5]),
    ),
    min_size=1,
    max_size=4,
)


def visit(ranks: Ranks, kind: Kind, epoch: int, segments: Sequence[Segment], group: Group) -> tuple[list[int], Segment]:
    """The ids that one rank of a group visits after these segments, and the segment that its group adds."""
    items, counts = kind.of(ranks)
    buckets = group.buckets(kind)
    order = EpochOrder(items, counts, group.batch_size, group.seed, ranks, buckets)
    first = segments[-1].last * order.steps // segments[-1].division.steps if segments else 0
    if segments:
        order.continue_epoch(epoch, first, segments)
    last = order.steps if group.share == 1 else first + int((order.steps - first) * group.share)
    visited: list[int] = []
    for step in range(first, last):
        ids = items.ids()[order.chosen(epoch, step).numpy()].tolist()
        assert order.sizes(epoch, step)[ranks.rank] == len(ids)
        visited += ids
    share = 1.0 if buckets is None else group.resident_share
    return visited, Segment(Division(ranks.size, order.steps, order.items, group.seed, share), first, last)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kind=KINDS, groups=GROUPS, epoch=st.integers(0, 3))
def test_each_item_of_an_epoch_is_visited_once_whoever_trains(kind: Kind, groups: list[Group], epoch: int) -> None:
    segments: list[Segment] = []
    visited: Counter[int] = Counter()
    for group in [*groups[:-1], replace(groups[-1], share=1.0)]:
        if segments and segments[-1].last == segments[-1].division.steps:
            break
        ranks = on_threads(group.workers, visit, kind, epoch, segments, group)
        for ids, _ in ranks:
            visited.update(ids)
        (segment,) = {added for _, added in ranks}
        if segment.last > segment.first:
            segments.append(segment)
    assert visited == Counter(kind.all())


def plain_rest(kind: Rows, epoch: int, segments: Sequence[Segment], rank: int, size: int) -> list[int]:
    """The ids of the row items that a rank has left, by following every worker of every segment."""
    left = kind.all()
    for index, segment in enumerate(segments):
        division, kept = segment.division, []
        for worker in range(division.workers):
            own = [item for item in left if item % kind.count % division.workers == worker]
            later = [index] if index else []
            generator = stream(Purpose.ORDER, division.seed, epoch, worker, *later)
            order = torch.randperm(len(own), generator=generator).tolist()
            done = (segment.last - segment.first) * len(own) // (division.steps - segment.first)
            kept += [own[place] for place in order[done:]]
        left = sorted(kept)
    return [item for item in left if item % kind.count % size == rank]


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_is_left_is_what_no_worker_before_has_visited(
    size: int, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_order, "PIECE", 3)  # many messages
    kind = Rows(101, copies)
    segments = [
        Segment(Division(3, 10, 101 * copies, 5), 0, 4),
        Segment(Division(7, 10, 101 * copies, 5), 4, 6),
        Segment(Division(2, 20, 101 * copies, 6), 12, 15),
    ]

    def rest(ranks: Ranks) -> list[int]:
        items, _ = kind.of(ranks)
        found: list[int] = items.ids()[epoch_order.remaining_items(items, ranks, 2, segments)].tolist()
        return found

    parts = on_threads(size, rest)
    assert parts == [plain_rest(kind, 2, segments, rank, size) for rank in range(size)]


def test_the_next_epoch_is_that_of_an_undisturbed_run() -> None:
    items = StridedItems(20, 1, Ranks.single())
    calm, broken = (EpochOrder(items, [20], 5, 0, Ranks.single()) for _ in range(2))
    broken.continue_epoch(1, 2, [Segment(Division(2, 4, 20, 0), 0, 2)])
    early = broken.chosen(2, 0)  # negatives are requested in advance
    assert sorted(torch.cat([broken.chosen(1, 2), broken.chosen(1, 3)]).tolist()) != sorted(
        torch.cat([calm.chosen(1, 2), calm.chosen(1, 3)]).tolist()
    )
    assert [broken.sizes(1, step) for step in (2, 3)] == [[5], [5]]
    assert [broken.sizes(2, step) for step in range(4)] == [[5]] * 4
    assert torch.equal(early, calm.chosen(2, 0))
    assert torch.equal(
        torch.cat([broken.chosen(2, s) for s in range(4)]), torch.cat([calm.chosen(2, s) for s in range(4)])
    )


def batches_of(kind: str, store: Store, batch_size: int, ranks: Ranks) -> Batches:
    if kind == "sampled":
        source = make_source("uniform", {}, TrainingGraph.of_store(store))
        return SampledBatches(store, source, NegativesConfig(count=2), batch_size, 1, 7, ranks)
    if kind == "query_sampling":
        return QuerySampledBatches(store, 0.5, batch_size, 7, ranks)
    return AllEntitiesBatches(store, kind == "grouped", batch_size, 7, ranks)


def asked_in(batch: Any) -> list[tuple[int, ...]]:
    """Anchor, relation and, where there is one, answer of the queries of a batch."""
    assert isinstance(batch, SampledBatch | QuerySampledBatch | AllEntitiesBatch)
    columns = [batch.ids[batch.anchor], batch.relation]
    if not isinstance(batch, AllEntitiesBatch):
        columns.append(batch.ids[batch.answer])
    return [tuple(row) for row in torch.stack(columns, 1).tolist()]


def ask(ranks: Ranks, kind: str, address: str, batch_size: int, segments: list[Segment], last: int | None) -> Any:
    store = Store.open(address)
    batches = batches_of(kind, store, batch_size, ranks)
    first = segments[-1].last * batches.steps // segments[-1].division.steps if segments else 0
    if segments:
        batches.order.continue_epoch(0, first, segments)
    last = batches.steps if last is None else last
    window = batches.window(0, first, last)
    asked = [query for batch in window for query in asked_in(batch)]
    totals = [
        batch.queries if not isinstance(batch, AllEntitiesBatch) else len(batch.answers.count) for batch in window
    ]
    return asked, totals, Segment(Division(ranks.size, batches.steps, batches.order.items, 7), first, last)


@pytest.mark.parametrize("kind", ["sampled", "query_sampling", "grouped", "one_by_one"])
def test_batches_of_every_kind_ask_each_query_of_an_epoch_once(small_store: str, kind: str) -> None:
    store = Store.open(small_store)
    facts, relations = store.triples("train").tolist(), store.num_relations
    queries = [(h, r, t) for h, r, t in facts] + [(t, r + relations, h) for h, r, t in facts]
    expected = sorted(queries)
    if kind in ("grouped", "one_by_one"):
        asked_of = [(anchor, relation) for anchor, relation, _ in queries]
        expected = sorted(set(asked_of) if kind == "grouped" else asked_of)  # type: ignore[arg-type]
    segments: list[Segment] = []
    asked: list[tuple[int, ...]] = []
    for size, batch_size, last in ((2, 100, 3), (3, 100, 5), (1, 64, None)):
        ranks = on_threads(size, ask, kind, small_store, batch_size, list(segments), last)
        asked += [query for own, _, _ in ranks for query in own]
        steps = list(zip(*(totals for _, totals, _ in ranks), strict=True))
        assert all(len(set(step)) == 1 for step in steps), "ranks differ in the queries of a step"
        segments.append(ranks[0][2])
    assert sorted(asked) == expected


def test_negatives_requested_in_advance_are_those_of_what_is_left(small_store: str) -> None:
    store = Store.open(small_store)
    source = make_source("uniform", {}, TrainingGraph.of_store(store))
    requests: list[DrawRequest] = []
    source.prefetch = lambda coming: requests.extend(coming)  # type: ignore[method-assign]
    negatives = NegativesConfig(count=2, pool=PoolConfig(actors=1, depth=5))
    batches = SampledBatches(store, source, negatives, 100, 3, 7, Ranks.single())
    batches.order.continue_epoch(1, 4, [Segment(Division(2, batches.steps, batches.order.items, 7), 0, 4)])
    windows = [batches.window(1, step, step + 1)[0] for step in range(4, batches.steps)]
    windows += batches.window(2, 0, 2)
    for request, batch in zip(requests, windows, strict=False):
        queries = request.queries
        requested = torch.stack([queries.anchor, queries.relation, queries.answer], 1).tolist()
        assert [tuple(row) for row in requested] == asked_in(batch)
    calm = SampledBatches(store, source, NegativesConfig(count=2), 100, 3, 7, Ranks.single())
    assert [asked_in(batch) for batch in windows[-2:]] == [asked_in(batch) for batch in calm.window(2, 0, 2)]
    assert [request.moment.step for request in requests][:2] == [batches.steps + 4, batches.steps + 5]
