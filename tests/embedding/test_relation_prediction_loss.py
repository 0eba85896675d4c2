"""Relation prediction beside its formula in double precision: what a weight adds to a step, for every objective and
scorer, on any number of ranks."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distkg.config import RunConfig
from distkg.data.store.graph_store import Store
from distkg.embedding.build import build_objective
from distkg.embedding.model import TrainingModel
from distkg.embedding.scorers import SCORERS, Scorer
from distkg.embedding.steps import relation_prediction
from distkg.graph.directions import both_directions
from distkg.sharding.exchange import plan_routes
from distkg.sharding.ranks import Ranks
from tests.distributed import run_ranks
from tests.embedding.test_loop import config, train, trained, trained_by_used_relations, two_facts  # noqa: F401  a fixture

WEIGHT = 0.7
Gradients = dict[str, np.ndarray]


def model_of(run: RunConfig, ranks: Ranks) -> TrainingModel:
    """A model whose vectors are far enough from 0 and from each other that scores of relations differ."""
    store = Store.open(run.data.store)
    model = TrainingModel(run, store.num_entities, store.num_relations, ranks)
    generator = torch.Generator().manual_seed(2)
    rows = 0.4 * torch.randn(store.num_entities, model.entities.width, generator=generator)
    low, high = model.entities.shards.range(ranks.rank)
    model.entities.local.copy_(rows[low:high])
    with torch.no_grad():
        model.relations.add_(0.4 * torch.randn(model.relations.shape, generator=generator))
    for layer in model.scorer.modules():  # without the dropout of layers, and with running statistics that stay
        if isinstance(layer, torch.nn.Dropout | torch.nn.Dropout2d):
            layer.eval()
        elif isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.momentum = 0.0
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.uniform_(-0.2, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 2.0, generator=generator)
    return model


def one_step(ranks: Ranks, run: RunConfig) -> Gradients:
    """Loss and all gradients of the first step, those of entities of all ranks."""
    model = model_of(run, ranks)
    batches, step = build_objective(run, Store.open(run.data.store), model)
    (batch,) = batches.window(0, 0, 1)
    (route,) = plan_routes([batch.ids], model.entities.shards, ranks)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    done = step(batch, model.entities.fetch(route).wait())
    ids, gradients = model.entities.collect(model.entities.push(route, done.rows))
    own = torch.zeros_like(model.entities.local) if done.every_row is None else done.every_row
    own.index_add_(0, ids, gradients)
    rows, loss = torch.zeros(model.num_entities, model.entities.width), done.loss.clone()
    low, high = model.entities.shards.range(ranks.rank)
    rows[low:high] = own
    named = {name: parameter.grad for name, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {"loss": loss, "rows": rows, **named}  # type: ignore[dict-item]
    for value in found.values():
        ranks.all_reduce(value)
    return {name: value.numpy() for name, value in found.items()}


def added(ranks: Ranks, run: RunConfig) -> Gradients:
    """What the weight of relation prediction adds to a step."""
    without = run.model_copy(update={"objective": run.objective.model_copy(update={"relation_prediction": 0.0})})
    plain, whole = one_step(ranks, without), one_step(ranks, run)
    return {name: whole[name] - plain[name] for name in whole}


def formula(run: RunConfig) -> Gradients:
    """λ times the mean over both queries of every training triple of −log P(relation | anchor, answer)."""
    store = Store.open(run.data.store)
    model = model_of(run, Ranks.single())
    for layer in model.scorer.modules():
        layer.eval()
    model = copy.deepcopy(model).double()
    entities, relations = model.entities.local.double().requires_grad_(), store.num_relations
    anchor, relation, answer = both_directions(
        *torch.from_numpy(store.triples("train")).long().T, num_relations=relations
    )
    total = entities.new_zeros(())
    for first in (0, relations):
        asked = (relation >= relations) == (first > 0)
        scores = []
        for other in range(first, first + relations):
            ids = torch.full_like(relation[asked], other)
            query = model.scorer.query(entities[anchor[asked]], model.relation_rows(ids))
            query = model.hardness(query, model.relation_row(ids))
            scores.append(model.training_similarity.pairs(query, model.scorer.candidates(entities[answer[asked]])))
        log_shares = torch.log_softmax(torch.stack(scores, 1), 1)
        total = total - log_shares.gather(1, relation[asked][:, None] - first).sum()
    loss = WEIGHT * total / len(relation)
    loss.backward()
    assert entities.grad is not None
    named = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {name: value.numpy() for name, value in {"loss": loss.detach(), "rows": entities.grad, **named}.items()}


def assert_added(run: RunConfig, size: int = 1) -> None:
    results = [added(Ranks.single(), run)] if size == 1 else run_ranks(size, added, run)
    expected = formula(run)
    assert expected["loss"] > 0.1
    for result in results:
        for name, value in expected.items():
            tolerance = 2e-3 * np.abs(value).max() + 2e-6
            np.testing.assert_allclose(result[name], value, rtol=2e-3, atol=tolerance, err_msg=name)


def run_of(store: str, **sections: dict[str, Any]) -> RunConfig:
    objective = {"name": "logistic", "relation_prediction": WEIGHT} | sections.pop("objective", {})
    return config(store, objective=objective, train={"batch_size": 100_000}, **sections)  # one step an epoch


OBJECTIVES: dict[str, dict[str, Any]] = {
    "logistic": {"objective": {"name": "logistic"}},
    "one_vs_all, grouped": {"objective": {"name": "one_vs_all"}, "regularizer": {"name": "n3", "weight": 0.1}},
    "one_vs_all": {"objective": {"name": "one_vs_all", "group_answers": False}},
    "k_vs_all": {"objective": {"name": "k_vs_all"}},
    "query_sampling": {"model": {"name": "rote"}, "objective": {"name": "query_sampling", "activation": "hanon"}},
    "non_negative": {"model": {"name": "rote"}, "objective": {"name": "non_negative"}},
}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective(small_store: str, objective: str, size: int) -> None:
    assert_added(run_of(small_store, **OBJECTIVES[objective]), size)


@pytest.mark.parametrize("scorer", sorted(SCORERS))
def test_every_scorer(small_store: str, scorer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several blocks, and with running statistics of batch norms that are not those of a new model."""
    monkeypatch.setattr(relation_prediction, "BLOCK_FLOATS", 1 << 15)
    assert_added(run_of(small_store, model={"name": scorer, "dim": 16}))


@pytest.mark.parametrize(
    "model",
    [
        {"name": "complex", "inverse": "tied"},
        {"name": "distmult", "options": {"distance": "squared_l2"}},
        {"name": "transe", "options": {"norm": "squared_l2"}, "inverse": "tied"},
        {"name": "rotate", "options": {"distance": "squared_l2"}},
    ],
    ids=lambda model: model["name"],
)
def test_options_of_scorers(small_store: str, model: dict[str, Any]) -> None:
    assert_added(run_of(small_store, model=model))


@pytest.mark.parametrize("scorer", sorted(SCORERS))
def test_queries_of_all_relations_are_those_of_each(scorer: str) -> None:
    run = RunConfig.model_validate({"model": {"name": scorer, "dim": 16}})
    model = TrainingModel(run, 5, 3, Ranks.single()).eval()
    anchor, ids = torch.randn(5, model.entities.width), torch.arange(3)
    crossed = model.cross_queries(anchor, model.relation_operands(ids), ids)
    expected = model.training_query(anchor.repeat_interleave(3, 0), ids.repeat(5), model.relation_rows(ids.repeat(5)))
    torch.testing.assert_close(crossed, expected)


def test_forms_without_queries() -> None:
    """Those of bilinear scorers and of translations; the formula above holds for their scores."""
    forms = []
    for name in SCORERS:
        with torch.device("meta"):
            scorer: Scorer = SCORERS[name](16, SCORERS[name].Options())
        if relation_prediction.has_relation_queries(scorer, torch.device("meta")):
            forms.append(name)
    assert {"complex", "cp", "distmult", "quate", "rescal", "simple", "transe", "tucker"} <= set(forms)
    assert not {"rotate", "conve", "rote"} & set(forms)


def test_batch_norm_keeps_its_statistics_and_its_mode(small_store: str) -> None:
    run = run_of(small_store, model={"name": "conve", "dim": 16})
    plain = run.model_copy(update={"objective": run.objective.model_copy(update={"relation_prediction": 0.0})})
    buffers = []
    for each in (run, plain):
        model = TrainingModel(each, 150, 6, Ranks.single())
        torch.manual_seed(3)
        batches, step = build_objective(each, Store.open(small_store), model)
        (batch,) = batches.window(0, 0, 1)
        step(batch, model.entities.local[batch.ids])
        assert model.scorer.output_norm.training
        buffers.append([buffer.clone() for buffer in model.buffers()])
    for ours, theirs in zip(*buffers, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dropout_of_vectors_is_drawn_once_for_each_query_and_relation(small_store: str) -> None:
    run = run_of(small_store, model={"name": "distmult", "dropout": 0.5})
    model = model_of(run, Ranks.single())
    predict = relation_prediction.RelationPrediction(model, run)
    count, rows = model.num_relations, model.entities.local
    torch.manual_seed(5)
    masks = [model.dropout(torch.ones(size, 8)) for size in (count, 4)]
    index = torch.tensor([3, 4, 5, 6])
    expected = torch.log_softmax((rows[index] * masks[1] * rows[index]) @ (model.relations[:count] * masks[0]).T, 1)
    torch.manual_seed(5)
    uses = relation_prediction.RowUses(rows, index, torch.zeros_like(rows))
    loss = predict(uses, uses, torch.zeros(4, dtype=torch.int64), (slice(0, 4), slice(4, None)), 1.0)
    assert loss.item() == pytest.approx(-WEIGHT * expected[:, 0].sum().item(), rel=1e-5)


@pytest.mark.parametrize("objective", ["one_vs_all, grouped", "non_negative"])
def test_ranks_without_queries_add_nothing(two_facts: str, objective: str) -> None:  # noqa: F811
    run = run_of(two_facts, **OBJECTIVES[objective], optimizer={"name": "adagrad"})
    rows, relations, losses = train(Ranks.single(), run, 2)
    for other_rows, other_relations, other_losses in run_ranks(3, train, run, 2):
        np.testing.assert_allclose(other_rows, rows, atol=2e-5)
        np.testing.assert_allclose(other_relations, relations, atol=2e-5)
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5)


def test_gradients_of_a_large_table_of_relations_are_summed_whole(small_store: str) -> None:
    """A step has 4 triples, but ranks six relations."""
    sections = {"optimizer": {"name": "adam"}, "objective": {"name": "logistic", "relation_prediction": WEIGHT}}
    run = config(small_store, **sections, train={"batch_size": 4})
    whole, large = run_ranks(3, trained, run, 1), run_ranks(3, trained_by_used_relations, run)
    for ours, theirs in zip(large, whole, strict=True):
        np.testing.assert_array_equal(ours[1], theirs[1])
