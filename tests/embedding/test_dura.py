"""DURA beside its formula in double precision: what it adds to a step, for every objective and bilinear scorer, on any
number of ranks; and scorers that have no products."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distkg.config import ConfigError, RunConfig
from distkg.data.store.graph_store import Store
from distkg.embedding.build import check_objective
from distkg.embedding.model import TrainingModel
from distkg.embedding.scorers import SCORERS
from distkg.embedding.steps import step
from distkg.embedding.steps.step import Penalty
from distkg.graph.directions import both_directions
from distkg.sharding.ranks import Ranks
from tests.distributed import run_ranks
from tests.embedding.test_loop import config
from tests.embedding.test_relation_prediction_loss import Gradients, model_of, one_step

BILINEAR = ["complex", "cp", "distmult", "quate", "rescal", "simple", "tucker"]
WEIGHTED = {"name": "dura", "weight": 0.2, "vector_factor": 0.5, "product_factor": 1.5}


def run_of(store: str, **sections: Any) -> RunConfig:
    return config(store, regularizer=WEIGHTED, train={"batch_size": 100_000}, **sections)  # one step an epoch


def added(ranks: Ranks, run: RunConfig) -> Gradients:
    """What the penalty adds to a step."""
    none = run.model_copy(update={"regularizer": run.regularizer.model_copy(update={"name": "none"})})
    plain, whole = one_step(ranks, none), one_step(ranks, run)
    return {name: whole[name] - plain[name] for name in whole}


def matrices(model: TrainingModel, relation: Tensor) -> Tensor:
    """R of each relation [b, dim of h, dim of t], written out from the score by the scorer's formula."""
    name, rows = type(model.scorer).__name__, model.relation_rows(relation)
    if name in ("DistMult", "CP"):
        return torch.diag_embed(rows)
    if name == "RESCAL":
        return rows.unflatten(1, (model.scorer.dim, model.scorer.dim))
    if name == "TuckER":
        return torch.einsum("br,rij->bij", rows, model.scorer.core)
    if name == "SimplE":
        first, second = rows.chunk(2, 1)
        half = model.scorer.dim // 2
        out = rows.new_zeros(len(rows), 2 * half, 2 * half)
        out[:, :half, half:], out[:, half:, :half] = torch.diag_embed(first) / 2, torch.diag_embed(second) / 2
        return out
    if name == "ComplEx":
        real, imaginary = (torch.diag_embed(part) for part in rows.chunk(2, 1))
        return torch.cat([torch.cat([real, imaginary], 2), torch.cat([-imaginary, real], 2)], 1)
    a, b, c, d = (rows / torch.stack(rows.chunk(4, 1)).square().sum(0).sqrt().repeat(1, 4)).chunk(4, 1)
    blocks = [[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]]
    return torch.cat([torch.cat([torch.diag_embed(each) for each in row], 2) for row in blocks], 1)


def formula(run: RunConfig) -> Gradients:
    """The mean over both queries of every training triple of .1 (‖h‖² + ‖t‖²) + .3 (‖hR‖² + ‖tRᵀ‖²)."""
    store = Store.open(run.data.store)
    model = copy.deepcopy(model_of(run, Ranks.single())).double()
    entities, dim = model.entities.local.double().requires_grad_(), model.scorer.dim
    triples = torch.from_numpy(store.triples("train")).long()
    anchor, relation, answer = both_directions(*triples.T, num_relations=store.num_relations)
    h, t = entities[anchor][:, :dim], entities[answer][:, -dim:]
    r = matrices(model, relation)
    products = torch.einsum("bi,bij->bj", h, r), torch.einsum("bj,bij->bi", t, r)
    own = h.square().sum() + t.square().sum()
    loss = (0.1 * own + 0.3 * (products[0].square().sum() + products[1].square().sum())) / len(relation)
    loss.backward()
    assert entities.grad is not None
    named = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {name: value.numpy() for name, value in {"loss": loss.detach(), "rows": entities.grad, **named}.items()}


def assert_added(run: RunConfig, size: int = 1) -> None:
    results = [added(Ranks.single(), run)] if size == 1 else run_ranks(size, added, run)
    expected = formula(run)
    for result in results:
        for name, value in expected.items():
            tolerance = 2e-3 * np.abs(value).max() + 2e-6
            np.testing.assert_allclose(result[name], value, rtol=2e-3, atol=tolerance, err_msg=name)


OBJECTIVES: dict[str, dict[str, Any]] = {
    "logistic": {"objective": {"name": "logistic"}},
    "one_vs_all, grouped": {"objective": {"name": "one_vs_all"}},
    "k_vs_all": {"objective": {"name": "k_vs_all"}},
    "query_sampling": {"objective": {"name": "query_sampling", "square_positives": False}},
}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective(small_store: str, objective: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "DUAL_FLOATS", 1000)  # several blocks of answers
    assert_added(run_of(small_store, **OBJECTIVES[objective], model={"name": "complex"}), size)


@pytest.mark.parametrize("objective", ["logistic", "one_vs_all"])
@pytest.mark.parametrize("scorer", BILINEAR)
def test_every_bilinear_scorer(small_store: str, scorer: str, objective: str) -> None:
    assert_added(run_of(small_store, model={"name": scorer}, objective={"name": objective}))


@pytest.mark.parametrize("scorer", ["complex", "rescal"])
def test_tied_inverses(small_store: str, scorer: str) -> None:
    for objective in ("logistic", "one_vs_all"):
        assert_added(run_of(small_store, model={"name": scorer, "inverse": "tied"}, objective={"name": objective}))


def test_by_hand() -> None:
    """h = 1 + 2i, r = 3i, t = 2: |h|² = 5, |t|² = 4, |hr|² = 45, |tr̄|² = 36."""
    run = RunConfig.model_validate(
        {"model": {"name": "complex", "dim": 2}, "regularizer": {"name": "dura", "weight": 2}}
    )
    penalty = Penalty(TrainingModel(run, 2, 1, Ranks.single()), run)
    h, r, t = torch.tensor([[[1.0, 2.0]], [[0.0, 3.0]], [[2.0, 0.0]]])
    assert penalty(h, r, t).item() == 2 * (5 + 4 + 45 + 36)


def test_scorers_with_products_are_those_that_say_so() -> None:
    assert {name for name in SCORERS if SCORERS[name].bilinear} >= set(BILINEAR)
    assert not any(SCORERS[name].bilinear for name in ("transe", "rotate", "pairre", "rote", "conve", "murp"))


@pytest.mark.parametrize(
    "model", [{"name": "rote", "options": {"bias": True}}, {"name": "distmult", "options": {"distance": "squared_l2"}}]
)
def test_other_scorers_are_refused(model: dict[str, Any]) -> None:
    run = RunConfig.model_validate({"model": model, "regularizer": {"name": "dura", "weight": 0.1}})
    with pytest.raises(ConfigError, match=rf"regularizer\.name: dura .* score of {model['name']} with .* not bilinear"):
        check_objective(run)
