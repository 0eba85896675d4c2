"""Ranks together do what one plain dense computation does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distkg.config import RunConfig, parse_config
from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store
from distkg.embedding.batches import SampledBatch, SampledBatches, unique_places
from distkg.embedding.build import build_objective
from distkg.embedding.loop import Loop
from distkg.embedding.model import TrainingModel, rows_by_relation
from distkg.kernels.threads import computing_threads
from distkg.negatives import TrainingGraph, make_source
from distkg.objectives import spread
from distkg.sharding import replicated_parameters
from distkg.sharding.ranks import Ranks
from distkg.sharding.replicated_parameters import ReplicatedParameters
from tests.distributed import run_ranks


def config(store: str, **sections: dict[str, Any]) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"store": store},
        "model": {"name": "distmult", "dim": 8},
        "objective": {"name": "logistic"},
        "negatives": {"count": 4, "chunk_size": 16},
        "optimizer": {"name": "rowwise_adagrad", "learning_rate": 0.05},
        "train": {"batch_size": 256, "seed": 7},
    }
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return parse_config(tree, "test", dead_keys_are="dropped")  # a section may make keys above idle


def loop_of(run: RunConfig, ranks: Ranks) -> Loop:
    store = Store.open(run.data.store)
    model = TrainingModel(run, store.num_entities, store.num_relations, ranks)
    batches, step = build_objective(run, store, model)
    dense = ReplicatedParameters(model, run.optimizer, ranks, by_row=rows_by_relation(run))
    rate = run.optimizer.learning_rate
    return Loop(model, batches, step, dense, rate, lambda epoch, step: 1.0, run.train.seed, overlap=run.train.overlap)


def train(ranks: Ranks, run: RunConfig, epochs: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """All entity rows, relation rows and mean losses by epoch after some epochs."""
    rows, relations, losses, _ = trained(ranks, run, epochs)
    return rows, relations, losses


def trained(ranks: Ranks, run: RunConfig, epochs: int) -> tuple[np.ndarray, np.ndarray, list[float], int]:
    """As ``train``, and the bytes exchanged."""
    loop = loop_of(run, ranks)
    model, steps = loop._model, loop._batches.steps
    losses = []
    for epoch in range(epochs):
        assert loop.run(epoch, 0, steps, lambda step: True) == steps
        losses.append(loop.pop_mean_loss())
    rows = model.entities.gather(torch.arange(model.num_entities))
    return rows.numpy(), model.relations.detach().numpy(), losses, loop.bytes_exchanged


def dense_reference(run: RunConfig, size: int, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """The same batches as ``size`` ranks draw, trained on one dense table with autograd and hand-written Adagrad."""
    store = Store.open(run.data.store)
    model = TrainingModel(run, store.num_entities, store.num_relations, Ranks.single())
    entities = model.entities.local.clone().requires_grad_()
    relations = model.relations.detach().clone().requires_grad_()
    source = make_source(run.negatives.source, run.negatives.options, TrainingGraph.of_store(store))
    makers = [
        SampledBatches(store, source, run.negatives, run.train.batch_size, epochs, run.train.seed, Ranks(rank, size))
        for rank in range(size)
    ]
    row_sums, relation_sums = torch.zeros(len(entities), 1), torch.zeros_like(relations)
    rate = run.optimizer.learning_rate
    for epoch in range(epochs):
        for step in range(makers[0].steps):
            loss = sum(_plain_loss(maker.window(epoch, step, step + 1)[0], entities, relations) for maker in makers)
            to_rows, to_relations = torch.autograd.grad(loss, (entities, relations))
            row_sums += to_rows.square().mean(1, keepdim=True)
            relation_sums += to_relations.square()
            with torch.no_grad():
                entities -= rate * to_rows / (row_sums.sqrt() + 1e-10)
                relations -= rate * to_relations / (relation_sums.sqrt() + 1e-10)
    return entities.detach().numpy(), relations.detach().numpy()


def _plain_loss(batch: object, entities: torch.Tensor, relations: torch.Tensor) -> torch.Tensor:
    assert isinstance(batch, SampledBatch)
    total = entities.new_zeros(())
    for i in range(len(batch.anchor)):
        query = entities[batch.ids[batch.anchor[i]]] * relations[batch.relation[i]]
        negatives = entities[batch.ids[batch.negatives[i // batch.sharing]]]
        positive = query @ entities[batch.ids[batch.answer[i]]]
        keep = torch.ones(len(negatives), dtype=torch.bool) if batch.mask is None else ~batch.mask[i]
        wrong = F.softplus(negatives @ query)
        total = total + F.softplus(-positive) + (wrong * keep).sum() / keep.sum().clamp_min(1)
    return total / batch.queries


SHARED, INDEPENDENT, RELATIONAL = {"shared": True}, {"shared": False}, {"source": "relational"}
MIXED = {"source": "mixture", "options": {"parts": [{"source": "uniform"}, {"source": "bernoulli", "weight": 2}]}}


@pytest.mark.parametrize("negatives", [SHARED, INDEPENDENT, RELATIONAL, MIXED])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_together_equal_a_dense_table(small_store: str, size: int, negatives: dict[str, object]) -> None:
    run = config(small_store, negatives={**negatives, "filter": True})
    expected_rows, expected_relations = dense_reference(run, size, 1)
    results = [train(Ranks.single(), run, 1)] if size == 1 else run_ranks(size, train, run, 1)
    for rows, relations, _ in results:
        np.testing.assert_allclose(rows, expected_rows, atol=2e-5)
        np.testing.assert_allclose(relations, expected_relations, atol=2e-5)


@pytest.mark.parametrize(
    ("objective", "scorer"),
    [
        ("k_vs_all", "distmult"),
        *(("one_vs_all", name) for name in ("distmult", "hake", "interht", "trans", "triplere")),
    ],
)
def test_objectives_over_all_entities_do_not_depend_on_the_number_of_ranks(
    small_store: str, objective: str, scorer: str
) -> None:
    run = config(
        small_store,
        model={"name": scorer},
        objective={"name": objective, "label_smoothing": 0.1},
        regularizer={"name": "n3", "weight": 0.01},
        optimizer={"name": "adagrad"},
        train={"batch_size": 100_000},  # one step an epoch: the batch is then the same on any number of ranks
    )
    rows, relations, losses = train(Ranks.single(), run, 3)
    for size in (2, 3):
        for other_rows, other_relations, other_losses in run_ranks(size, train, run, 3):
            np.testing.assert_allclose(other_rows, rows, atol=2e-5)
            np.testing.assert_allclose(other_relations, relations, atol=2e-5)
            np.testing.assert_allclose(other_losses, losses, rtol=1e-5)


def test_grouped_and_single_queries_are_the_same_objective(small_store: str) -> None:
    single, grouped = (
        train(
            Ranks.single(),
            config(
                small_store,
                objective={"name": "one_vs_all", "group_answers": group},
                regularizer={"name": "n3", "weight": 0.01},
                optimizer={"name": "adagrad"},
                train={"batch_size": 100_000},
            ),
            3,
        )
        for group in (False, True)
    )
    np.testing.assert_allclose(grouped[2], single[2], rtol=1e-5)
    np.testing.assert_allclose(grouped[0], single[0], atol=1e-5)


def test_overlapping_the_exchange_learns_the_same(small_store: str) -> None:
    plain = train(Ranks.single(), config(small_store), 60)[2]
    overlapped = run_ranks(2, train, config(small_store, train={"overlap": True}), 60)[0][2]
    assert plain[-1] < 0.75 * plain[0]
    assert overlapped[-1] == pytest.approx(plain[-1], rel=0.1)


def trained_by_used_relations(ranks: Ranks, run: RunConfig) -> tuple[np.ndarray, np.ndarray, list[float], int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replicated_parameters, "SUMMED_WHOLE", 0)
        return trained(ranks, run, 1)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "sections",
    [
        {"optimizer": {"name": "adam"}, "train": {"overlap": True}},
        {"objective": {"name": "one_vs_all"}, "regularizer": {"name": "n3", "weight": 0.01}},
        {
            "model": {"name": "rote", "inverse": "tied"},
            "objective": {"name": "query_sampling", "activation": "hanon", "query_share": 0.5},
            "optimizer": {"name": "adagrad"},
        },
    ],
)
def test_sums_of_the_relations_of_a_step_are_those_of_all(
    small_store: str, size: int, sections: dict[str, Any]
) -> None:
    """A step has 4 triples, of six relations."""
    run = config(small_store, **{**sections, "train": {"batch_size": 4, **sections.get("train", {})}})
    whole, parts = run_ranks(size, trained, run, 1), run_ranks(size, trained_by_used_relations, run)
    for (*expected, all_bytes), (*results, some_bytes) in zip(whole, parts, strict=True):
        for values, others in zip(results, expected, strict=True):
            np.testing.assert_array_equal(values, others)
        assert some_bytes < all_bytes


def test_indices_of_entities_among_those_of_a_batch(small_store: str) -> None:
    entities = Store.open(small_store).num_entities
    unique, place = unique_places(torch.tensor([5, 2, 5, entities - 1]), entities)
    assert unique.tolist() == [2, 5, entities - 1]
    assert place.tolist() == [1, 0, 1, 2]


@pytest.fixture(scope="module")
def two_facts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a store with three entities and two triples."""
    folder = tmp_path_factory.mktemp("facts")
    (folder / "train.tsv").write_text("a\tr\tb\nb\ts\tc\n")
    return prepare(str(folder), str(folder / "store")).store


@pytest.mark.parametrize("negatives", [SHARED, INDEPENDENT, RELATIONAL])
def test_ranks_without_queries_and_rows_add_nothing(two_facts: str, negatives: dict[str, object]) -> None:
    run = config(two_facts, negatives={**negatives, "filter": True})
    expected_rows, expected_relations = dense_reference(run, 5, 3)
    for rows, relations, _ in run_ranks(5, train, run, 3):
        np.testing.assert_allclose(rows, expected_rows, atol=2e-5)
        np.testing.assert_allclose(relations, expected_relations, atol=2e-5)


OVER_ALL: dict[str, dict[str, Any]] = {
    "one_vs_all": {"objective": {"name": "one_vs_all"}},
    "k_vs_all": {"objective": {"name": "k_vs_all"}},
    "non_negative": {"model": {"name": "rote"}, "objective": {"name": "non_negative", "uniformity": 1.0}},
}


@pytest.mark.parametrize("objective", OVER_ALL)
def test_ranks_without_queries_and_rows_add_nothing_over_all_entities(two_facts: str, objective: str) -> None:
    sections = {"optimizer": {"name": "adagrad"}, **OVER_ALL[objective]}
    run = config(two_facts, **sections, regularizer={"name": "n3" if objective == "one_vs_all" else "none"})
    rows, relations, losses = train(Ranks.single(), run, 3)
    for other_rows, other_relations, other_losses in run_ranks(5, train, run, 3):
        np.testing.assert_allclose(other_rows, rows, atol=2e-5)
        np.testing.assert_allclose(other_relations, relations, atol=2e-5)
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5)


def test_every_training_triple_is_asked_once_an_epoch(small_store: str) -> None:
    run = config(small_store)
    store = Store.open(small_store)
    source = make_source("uniform", {}, TrainingGraph.of_store(store))
    seen = []
    for rank in range(3):
        maker = SampledBatches(store, source, run.negatives, run.train.batch_size, 1, 0, Ranks(rank, 3))
        for batch in maker.window(5, 0, maker.steps):
            assert isinstance(batch, SampledBatch)
            asked = torch.stack([batch.ids[batch.anchor], batch.relation, batch.ids[batch.answer]], 1)
            seen += [tuple(row) for row in asked.tolist()]
    relations = store.num_relations
    expected = [(h, r, t) for h, r, t in store.triples("train").tolist()]
    expected += [(t, r + relations, h) for h, r, t in store.triples("train").tolist()]
    assert sorted(seen) == sorted(expected)


STEPS: dict[str, dict[str, Any]] = {
    **OVER_ALL,
    "logistic": {"negatives": {"filter": True}},
    "unshared": {"negatives": {"shared": False}},
    "query_sampling": {"model": {"name": "rote"}, "objective": {"name": "query_sampling"}},
    "relation prediction": {"objective": {"relation_prediction": 0.5}},
    "relation prediction, one_vs_all": {"objective": {"name": "one_vs_all", "relation_prediction": 0.5}},
}


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_without_queries_on_any_rank_has_no_loss_and_no_gradient(
    two_facts: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch that goes on with a larger batch and more workers can have such a step."""
    run = config(two_facts, regularizer={"name": "n3", "weight": 0.1}, **STEPS[kind])
    model = TrainingModel(run, 3, 2, Ranks.single())
    batches, step = build_objective(run, Store.open(two_facts), model)
    monkeypatch.setattr(batches.order, "chosen", lambda epoch, step: torch.empty(0, dtype=torch.int64))
    monkeypatch.setattr(batches.order, "sizes", lambda epoch, step: [0])
    (batch,) = batches.window(0, 0, 1)
    result = step(batch, model.entities.local[batch.ids])
    expected, gradient = torch.zeros(()), torch.zeros(3, model.entities.width)
    if kind == "non_negative":
        expected, gradient = spread(model.entities.local, run.objective.radius, 3, model.ranks)
    torch.testing.assert_close(result.loss, expected)
    assert not result.rows.any()
    if result.every_row is not None:
        torch.testing.assert_close(result.every_row, gradient)
    assert model.relations.grad is None or not model.relations.grad.any()


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"negatives": {"source": "corrupt", "filter": True}},
        {"objective": {"name": "one_vs_all"}},
        {"model": {"name": "rote"}, "objective": {"name": "query_sampling"}},
        {"model": {"name": "rotate"}, "objective": {"relation_prediction": 0.5}},
    ],
    ids=["shared", "independent", "all entities", "query sampling", "relation prediction"],
)
def test_more_threads_make_no_other_run(small_store: str, sections: dict[str, Any]) -> None:
    run = config(small_store, **sections)
    with computing_threads(1):
        rows, relations, losses = train(Ranks.single(), run, epochs=2)
    with computing_threads(3):
        others = train(Ranks.single(), run, epochs=2)
    np.testing.assert_array_equal(rows, others[0])
    np.testing.assert_array_equal(relations, others[1])
    assert losses == others[2]
