"""Models on another device than the graph: on torch's meta device, whose tensors refuse to meet those of another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_facts import graph

from distkg.foundation.graph_scorer import GraphScorer, RelationStateCache
from distkg.foundation.model_files import make_model
from distkg.foundation.models import FoundationModel
from distkg.kernels.message_passing.moments import Moments
from distkg.kernels.message_passing.sums import reference_propagate as reference

THERE = torch.device("meta")
MODELS: dict[str, dict[str, Any]] = {
    "ultra": {},
    "trix": {},
    "nbfnet, sum": {"relations": 2, "aggregate": "sum"},
    "nbfnet, PNA": {"relations": 2, "aggregate": "pna"},
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FoundationModel:
    def as_they_are(values: torch.Tensor, return_inverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return values, torch.arange(len(values), device=values.device)

    monkeypatch.setattr(torch, "unique", as_they_are)  # tensors there have no numbers to tell apart
    monkeypatch.setattr(RelationStateCache, "_forget_if_changed", lambda cache: None)
    # And these would look for the numbers that are not 0.
    monkeypatch.setattr(
        "distkg.kernels.message_passing.moments.reference_moments", lambda *a: Moments(*[reference(*a)] * 4)
    )
    options = MODELS[request.param] | {"width": 8, "hidden": 8}
    return make_model(request.param.partition(",")[0], options).to(THERE)


def test_scores_are_made_where_the_model_is(model: FoundationModel) -> None:
    assert model.device == THERE
    scores = GraphScorer(model, graph()).scores(np.array([[0, 1], [2, 3]]))
    assert (scores.device, scores.shape) == (THERE, (2, 5))


def test_gradients_too_with_hidden_facts_and_some_candidates(model: FoundationModel) -> None:
    whole = graph()
    anchor, relation, answer = (torch.tensor([number], device=THERE) for number in (2, 1, 3))
    weight = whole.mask_without(anchor, relation, answer)
    assert (weight.device, weight.shape) == (THERE, (12,))
    states = model.relation_states(whole, anchor, relation, weight)
    scores = model.scores(whole, states, anchor, relation, weight, torch.tensor([[3, 4]], device=THERE))
    assert (scores.device, scores.shape) == (THERE, (1, 2))
    scores.sum().backward()
    assert all(parameter.grad is None or parameter.grad.device == THERE for parameter in model.parameters())
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_edges_are_copied_there_once(model: FoundationModel) -> None:
    whole = graph()
    for _ in range(2):
        GraphScorer(model, whole).scores(np.array([[0, 1]]))
    assert list(whole.facts._elsewhere) == [THERE]
    assert whole.facts.device.type == "cpu"


def test_tensors_of_two_devices_do_not_meet() -> None:
    """Or nothing would be tested here."""
    for meet in (torch.mul, torch.matmul, torch.dot):
        with pytest.raises(RuntimeError, match="device"):
            meet(torch.ones(2, device=THERE), torch.ones(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_a_real_gpu_gives_the_scores_and_gradients_of_the_cpu(
    options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id.partition(",")[0]
    torch.manual_seed(0)
    model = make_model(name, options | {"width": 16, "hidden": 16})
    whole, results = graph(), []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        anchor, relation, answer = torch.tensor([[0, 2], [1, 3], [4, 3]], device=device)
        weight = whole.mask_without(anchor, relation, answer)
        scores = model(whole, anchor, relation, weight)
        gradients = torch.autograd.grad(scores.square().sum(), list(model.parameters()), allow_unused=True)
        results.append([scores, *(gradient for gradient in gradients if gradient is not None)])
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-4)
