"""Steps on torch's meta device, whose tensors have no values: a step that waits for a value on the host fails here, as
it would stop a GPU."""

from __future__ import annotations

import pytest
import torch

from distkg.config import RunConfig
from distkg.embedding.batches import AllEntitiesBatch, Batch, QuerySampledBatch, SampledBatch
from distkg.embedding.model import TrainingModel
from distkg.embedding.steps.all_entities import AllEntitiesStep
from distkg.embedding.steps.query_sampling import NonNegativeStep, QuerySamplingStep
from distkg.embedding.steps.sampled import SampledStep
from distkg.embedding.steps.step import Step
from distkg.objectives import Answers
from distkg.sharding.ranks import Ranks

ENTITIES, RELATIONS, QUERIES, NEGATIVES, WIDTH = 50, 3, 12, 5, 16
META = torch.device("meta")


def ints(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int64, device=META)


def floats(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device=META)


def sampled(sharing: int, masked: bool) -> SampledBatch:
    rows = QUERIES // sharing
    mask = torch.empty(QUERIES, NEGATIVES, dtype=torch.bool, device=META) if masked else None
    one = ints(QUERIES)
    return SampledBatch(ints(ENTITIES), one, one, one, ints(rows, NEGATIVES), sharing, mask, QUERIES)


def query_sampled() -> QuerySampledBatch:
    one = ints(QUERIES)
    return QuerySampledBatch(ints(ENTITIES), one, one, one, QUERIES, ints(3), 3, floats(3), ints(7), ints(5))


def all_entities() -> AllEntitiesBatch:
    answers = Answers(ints(QUERIES), ints(QUERIES), floats(QUERIES))
    one, asked = ints(QUERIES), (ints(QUERIES), ints(7), ints(5))
    return AllEntitiesBatch(ints(ENTITIES), one, one, floats(QUERIES), QUERIES, answers, *asked)


HALE = {"name": "query_sampling", "square_positives": False}
STEPS: dict[str, tuple[str, dict[str, object], type[Step], Batch]] = {
    "shared negatives": ("distmult", {"name": "logistic"}, SampledStep, sampled(4, masked=False)),
    "shared negatives, masked": ("rotate", {"name": "margin"}, SampledStep, sampled(4, masked=True)),
    "independent negatives": ("complex", {"name": "self_adversarial"}, SampledStep, sampled(1, masked=True)),
    "softmax over negatives": ("transe", {"name": "sampled_softmax"}, SampledStep, sampled(1, masked=False)),
    "all entities": ("complex", {"name": "one_vs_all"}, AllEntitiesStep, all_entities()),
    "query sampling": ("distmult", HALE, QuerySamplingStep, query_sampled()),
    "no negatives": ("distmult", {"name": "non_negative"}, NonNegativeStep, query_sampled()),
}


@pytest.mark.parametrize("relation_prediction", [0.0, 0.5])
@pytest.mark.parametrize("kind", list(STEPS))
def test_a_step_waits_for_no_value(kind: str, relation_prediction: float) -> None:
    scorer, objective, step, batch = STEPS[kind]
    objective = {**objective, "relation_prediction": relation_prediction}
    tree = {"model": {"name": scorer, "dim": WIDTH}, "objective": objective, "train": {"workers": 1}}
    config = RunConfig.model_validate(tree)
    model = TrainingModel(config, ENTITIES, RELATIONS, Ranks(device=META))
    done = step(model, config)(batch, floats(ENTITIES, WIDTH))  # type: ignore[call-arg]
    assert done.loss.device == done.rows.device == META
    assert done.rows.shape == (ENTITIES, WIDTH)
    assert done.loss.shape == ()
