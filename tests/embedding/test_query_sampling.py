"""HaLE's training: a step against the formula on a dense table, on any number of ranks; and settings that fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distkg.config import ConfigError, RunConfig, parse_config
from distkg.data.store.graph_store import Store
from distkg.embedding.batches import QuerySampledBatch, QuerySampledBatches
from distkg.embedding.build import build_objective
from distkg.embedding.model import TrainingModel
from distkg.kernels.scores.activations import ACTIVATIONS
from distkg.sharding.exchange import plan_routes
from distkg.sharding.ranks import Ranks
from tests.distributed import run_ranks

QUERIES = 100


def config(store: str, **sections: dict[str, Any]) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"store": store},
        "model": {"name": "rote", "dim": 8},
        "objective": {"name": "query_sampling", "activation": "hanon", "query_share": 0.3, "uniformity": 0.7},
        "train": {"batch_size": QUERIES // 2, "seed": 3},
    }
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return parse_config(tree, "test", dead_keys_are="dropped")  # a section may make keys above idle


def one_step(ranks: Ranks, run: RunConfig) -> dict[str, Any]:
    """Loss and all gradients of the first step, summed over ranks; rows are spread out so that distances differ."""
    store = Store.open(run.data.store)
    model = TrainingModel(run, store.num_entities, store.num_relations, ranks)
    model.entities.local.mul_(500)
    batches, step = build_objective(run, store, model)
    (batch,) = batches.window(0, 0, 1)
    (route,) = plan_routes([batch.ids], model.entities.shards, ranks)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    computed = step(batch, model.entities.fetch(route).wait())
    ids, gradients = model.entities.collect(model.entities.push(route, computed.rows))
    assert computed.every_row is not None
    computed.every_row.index_add_(0, ids, gradients)
    loss = computed.loss.clone()
    ranks.all_reduce(loss)
    dense = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        ranks.all_reduce(parameter.grad)
        dense[name] = parameter.grad.numpy()
    return {"loss": loss.item(), "rows": computed.every_row.numpy(), **dense}


def formula(run: RunConfig, size: int) -> dict[str, Any]:
    """The same in float64 from the paper's equations 3, 5, 8 and 9, with every score written out."""
    store = Store.open(run.data.store)
    model = TrainingModel(run, store.num_entities, store.num_relations, Ranks.single()).double()
    entities = (500 * model.entities.local.double()).requires_grad_()
    makers = [QuerySampledBatches(store, 0.3, QUERIES // 2, run.train.seed, Ranks(rank, size)) for rank in range(size)]
    batches = [maker.window(0, 0, 1)[0] for maker in makers]
    activation = ACTIVATIONS[run.objective.activation](run.objective.activation_limit, None)
    alignment, log_sums = [], []
    for batch in batches:
        assert isinstance(batch, QuerySampledBatch)
        angle, translation = model.relations[batch.relation].split((4, 8), dim=1)
        real, imaginary = entities[batch.ids[batch.anchor]].chunk(2, 1)
        turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angle), angle)
        query = torch.cat([turned.real, turned.imag], 1) + translation
        scale = 0.05 + torch.nn.functional.softplus(scale_of(model)[batch.relation])
        distance = (query[:, None] - entities).square().sum(-1)
        activated = activation(scale * distance)
        chosen = activated.gather(1, batch.ids[batch.answer][:, None]).flatten()
        alignment.append(chosen.square() if run.objective.square_positives else chosen)
        log_sums.append(torch.logsumexp(-activated[batch.sampled], 1))
    if run.objective.name == "non_negative":
        away = (entities - entities.mean(0)).norm(dim=1)
        uniformity = (away.square() - run.objective.radius**2).square().mean()
    else:
        uniformity = torch.cat(log_sums).mean()
    loss = torch.cat(alignment).mean() + run.objective.uniformity * uniformity
    loss.backward()
    assert entities.grad is not None
    dense = {name: parameter.grad.numpy() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"loss": loss.item(), "rows": entities.grad.numpy(), **dense}


def scale_of(model: TrainingModel) -> Tensor:
    scale = model.hardness.raw_scale
    assert isinstance(scale, Tensor)
    return scale


OBJECTIVES: list[dict[str, Any]] = [
    {"square_positives": True},
    {"square_positives": False},
    {"name": "non_negative", "radius": 0.8},
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["squared", "plain", "non_negative"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_step_is_the_paper_formula_on_any_number_of_ranks(
    small_store: str, size: int, objective: dict[str, Any]
) -> None:
    run = config(small_store, objective=objective)
    results = [one_step(Ranks.single(), run)] if size == 1 else run_ranks(size, one_step, run)
    expected = formula(run, size)
    rows = np.concatenate([result["rows"] for result in results])
    largest = np.abs(expected["rows"]).max()
    np.testing.assert_allclose(rows, expected["rows"], rtol=1e-3, atol=1e-4 * largest)
    for result in results:
        assert result["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        for name in ("relations", "hardness.raw_scale"):
            atol = 1e-4 * np.abs(expected[name]).max()
            np.testing.assert_allclose(result[name], expected[name], rtol=1e-3, atol=atol)


def test_the_share_of_sampled_queries_is_that_configured_and_never_none(small_store: str) -> None:
    store = Store.open(small_store)
    for share, expected in ((0.3, 30), (1.0, 100), (1e-6, 1), (0.0, 0)):
        batch = QuerySampledBatches(store, share, QUERIES // 2, 0, Ranks.single()).window(0, 0, 1)[0]
        assert isinstance(batch, QuerySampledBatch)
        assert abs(batch.queries - QUERIES) <= 2  # an epoch is cut into nearly equal parts
        assert abs(len(batch.sampled) - expected) <= 1
        assert len(batch.live) == batch.width == len(batch.sampled)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"objective": {"query_share": 0}}, "objective.query_share"),
        ({"objective": {"query_share": 1.5}}, "objective.query_share"),
        ({"objective": {"activation_limit": 0}}, "objective.activation_limit"),
        ({"objective": {"activation": "tanh"}}, "hanon"),
        ({"model": {"name": "complex"}}, "activates squared L2 distances; complex compares by dot"),
        ({"model": {"name": "distmult"}, "objective": {"activation": "none"}}, "set objective.square_positives: false"),
    ],
)
def test_bad_settings_are_refused_with_what_is_allowed(
    small_store: str, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        one_step(Ranks.single(), config(small_store, **sections))


def test_non_negative_training_wants_inner_products_of_one(small_store: str) -> None:
    """With all vectors 0 each product misses 1 by 1, and each entity the squared radius 4 by 4."""
    plain = {"name": "non_negative", "activation": "none", "radius": 2.0, "uniformity": 0.5}
    run = config(small_store, model={"name": "distmult"}, objective=plain)
    store = Store.open(small_store)
    model = TrainingModel(run, store.num_entities, store.num_relations, Ranks.single())
    model.entities.local.zero_()
    batches, step = build_objective(run, store, model)
    (batch,) = batches.window(0, 0, 1)
    assert step(batch, model.entities.local[batch.ids]).loss.item() == pytest.approx(1 + 0.5 * 16)


@pytest.mark.parametrize("objective", ["logistic", "one_vs_all", "k_vs_all"])
def test_activation_serves_the_other_objectives_too(small_store: str, objective: str) -> None:
    run = config(small_store, objective={"name": objective})
    store = Store.open(small_store)
    model = TrainingModel(run, store.num_entities, store.num_relations, Ranks.single())
    batches, step = build_objective(run, store, model)
    (batch,) = batches.window(0, 0, 1)
    computed = step(batch, model.entities.local[batch.ids])
    assert computed.loss.isfinite()
    grad = scale_of(model).grad
    assert grad is not None
    assert float(grad.abs().max()) > 0
