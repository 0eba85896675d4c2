"""Batches made on a device are those that the host makes by compiled kernels, id by id."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distkg.config import NegativesConfig
from distkg.data.store.classes import Classes
from distkg.data.store.graph_store import Store
from distkg.embedding.batches import SampledBatch, SampledBatches
from distkg.embedding.build import build_objective
from distkg.embedding.model import TrainingModel
from distkg.negatives import TrainingGraph, draws_on_tensors, make_source
from distkg.sharding.ranks import Ranks
from tests.as_on_a_device import with_numbers_of_a_device, without_compiled_kernels
from tests.embedding.test_loop import config

META = torch.device("meta")
PARTS = [{"source": "uniform"}, {"source": "corrupt", "weight": [[0, 1], [1, 3]]}, {"source": "bernoulli"}]
SOURCES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "degree": {},
    "bernoulli": {},
    "corrupt": {"integrate": True},
    "relational": {},
    "typed": {"integrate": True},
    "classes": {},
    "mixture": {"parts": PARTS},
}


def graph(seed: int, entities: int, relations: int, facts: int) -> TrainingGraph:
    """Random triples; an entity has a class, two, or none, and a relation may require one."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, entities, (2, facts))
    triples = np.stack([ends[0], rng.integers(0, relations, facts), ends[1]], 1).astype(np.int32)
    counts = rng.integers(0, 3, entities)
    counts[0] = 1
    members = rng.integers(0, 3, counts.sum()).astype(np.int32)
    required = rng.integers(-1, 3, 2 * relations).astype(np.int32)
    required[0] = 0
    classes = Classes(pa.array(["a", "b", "c"]), np.append(0, np.cumsum(counts)), members, required)
    return TrainingGraph.of_triples(triples, entities, relations, classes)


def batches_of(
    drawn_from: TrainingGraph, source: str, ranks: Ranks, *, on_device: bool, shared: bool = True, batch_size: int = 7
) -> SampledBatches:
    triples = drawn_from.triples
    store = SimpleNamespace(
        num_entities=drawn_from.entities,
        num_relations=drawn_from.relations,
        manifest=SimpleNamespace(triples={"train": len(triples)}),
        triples_part=lambda split, rank, size, first: triples[first:][rank::size],
    )
    negatives = NegativesConfig(count=3, shared=shared, chunk_size=4, filter=True)
    made = make_source(source, SOURCES[source], drawn_from)
    return SampledBatches(cast(Store, store), made, negatives, batch_size, 2, 7, ranks, on_device=on_device)


def assert_equal_ids(found: SampledBatch, expected: SampledBatch) -> None:
    count = len(expected.ids)
    assert found.ids[:count].tolist() == expected.ids.tolist()
    assert found.ids[count:].tolist() == expected.ids[-1:].tolist() * (len(found.ids) - count)
    for name in ("anchor", "answer", "relation", "negatives"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name
    assert (found.sharing, found.queries) == (expected.sharing, expected.queries)
    nothing = torch.zeros(len(expected.anchor), expected.negatives.shape[1], dtype=torch.bool)
    masks = [nothing if batch.mask is None else batch.mask for batch in (found, expected)]
    assert torch.equal(*masks)


@pytest.mark.parametrize("source", list(SOURCES))
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    entities=st.integers(2, 30),
    relations=st.integers(1, 4),
    facts=st.integers(1, 40),
    shared=st.booleans(),
    size=st.integers(1, 3),
)
def test_batches_of_a_device_are_those_of_the_host(
    source: str, seed: int, entities: int, relations: int, facts: int, shared: bool, size: int
) -> None:
    drawn_from, ranks = graph(seed, entities, relations, facts), Ranks(size - 1, size)
    with pytest.MonkeyPatch.context() as patch:
        with_numbers_of_a_device(patch)
        host = batches_of(drawn_from, source, ranks, on_device=False, shared=shared)
        expected = [batch for epoch in range(2) for batch in host.window(epoch, 0, host.steps)]
    with pytest.MonkeyPatch.context() as patch:
        without_compiled_kernels(patch)
        device = batches_of(drawn_from, source, ranks, on_device=True, shared=shared)
        found = [batch for epoch in range(2) for batch in device.window(epoch, 0, device.steps)]
    for ours, theirs in zip(found, expected, strict=True):
        assert isinstance(ours, SampledBatch)
        assert isinstance(theirs, SampledBatch)
        assert_equal_ids(ours, theirs)
    assert device.take_removed() == host.take_removed()
    assert device.take_removed() == 0


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("source", list(SOURCES))
def test_the_host_waits_for_no_batch(source: str, shared: bool) -> None:
    """On the meta device, whose tensors have no values to wait for."""
    made = batches_of(graph(1, 20, 3, 40), source, Ranks(device=META), on_device=True, shared=shared)
    for batch in made.window(0, 0, made.steps):
        assert isinstance(batch, SampledBatch)
        assert batch.ids.device == batch.negatives.device == META
        assert len(batch.ids) == min(20, 2 * len(batch.anchor) // 2 + batch.negatives.numel())


def test_what_the_host_draws_is_copied_to_the_device() -> None:
    made = batches_of(graph(1, 20, 3, 40), "uniform", Ranks(device=META), on_device=False, shared=False)
    (batch,) = made.window(0, 0, 1)
    assert isinstance(batch, SampledBatch)
    assert batch.mask is not None
    assert {getattr(batch, name).device for name in ("ids", "anchor", "answer", "relation", "negatives", "mask")} == {
        META
    }


@pytest.mark.parametrize(
    ("sections", "made_there"),
    [
        ({}, True),
        ({"negatives": {"source": "relational"}}, True),
        ({"negatives": {"source": "k_hop"}}, False),
        ({"train": {"resident_share": 0.5}}, False),
    ],
)
def test_batches_are_made_on_a_device_where_the_source_can(
    small_store: str, sections: dict[str, Any], made_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, store = config(small_store, **sections), Store.open(small_store)
    model = TrainingModel(run, store.num_entities, store.num_relations, Ranks.single())
    without_compiled_kernels(monkeypatch)
    made, _ = build_objective(run, store, model)
    assert isinstance(made, SampledBatches)
    assert (made.order.chosen(0, 0).device, made.made_on_device) == (torch.device("cpu"), made_there)


WALKS = [{"source": "uniform"}, {"source": "k_hop"}]


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        *((name, options, True) for name, options in SOURCES.items()),
        ("k_hop", {}, False),
        ("mixture", {"parts": WALKS}, False),
    ],
)
def test_a_source_says_before_it_is_made_where_it_draws(source: str, options: dict[str, Any], expected: bool) -> None:
    """By which a plan counts what a GPU holds."""
    made = make_source(source, options, graph(1, 20, 3, 40))
    assert (made.on_tensors() is not None) == draws_on_tensors(source, options) == expected
