"""Negatives made for each query, in a step: its loss is the sum that the paper writes, its gradient whole."""

from __future__ import annotations

import pytest
import torch

from distkg.config import RunConfig
from distkg.embedding.batches import SampledBatch
from distkg.embedding.model import TrainingModel
from distkg.embedding.steps.sampled import SampledStep
from distkg.negatives import GeneratedNegatives
from distkg.sharding.ranks import Ranks

ENTITIES, WIDTH = 7, 6


def setting() -> tuple[TrainingModel, SampledStep, SampledBatch]:
    config = RunConfig.model_validate(
        {
            "model": {"name": "distmult", "dim": WIDTH},
            "objective": {"name": "self_adversarial", "margin": 2.0},
            "negatives": {"shared": False},
            "train": {"workers": 1},
        }
    )
    model = TrainingModel(config, ENTITIES, 2, Ranks.single())
    batch = SampledBatch(
        ids=torch.arange(ENTITIES),
        anchor=torch.tensor([0, 1]),
        answer=torch.tensor([2, 3]),
        relation=torch.tensor([0, 3]),
        negatives=torch.tensor([[4, 5], [6, 0]]),
        sharing=1,
        mask=None,
        queries=2,
    )
    return model, SampledStep(model, config), batch


def with_made(batch: SampledBatch, made: GeneratedNegatives) -> SampledBatch:
    return SampledBatch(**{**vars(batch), "made": made})


def made_loss(
    model: TrainingModel, batch: SampledBatch, rows: torch.Tensor, vectors: torch.Tensor, made: GeneratedNegatives
) -> torch.Tensor:
    """Equation 15 of DANS-KGC with the weights of the self-adversarial objective, query by query."""
    query = model.query(rows[batch.anchor], batch.relation)
    total = 0 * rows.sum()
    for i in range(2):
        margin = 2.0 * made.growth[i]
        positive = (query[i] * rows[batch.answer[i]]).sum()
        kept = [m for m in range(vectors.shape[1]) if not made.mask[i, m]]
        if not kept:
            continue
        scores = torch.stack([(query[i] * vectors[i, m]).sum() for m in kept])
        weights = torch.softmax(scores.detach(), 0)
        total = total - torch.nn.functional.logsigmoid(margin + positive)
        total = total - (weights * torch.nn.functional.logsigmoid(-margin - scores)).sum()
    return made.weight * total / batch.queries


@pytest.mark.parametrize("kind", ["vectors", "entities"])
@pytest.mark.parametrize("mask", [[[False, False], [False, True]], [[True, True], [False, False]]])
def test_loss_and_gradient_are_those_of_the_sum_written_out(kind: str, mask: list[list[bool]]) -> None:
    torch.manual_seed(0)
    model, step, batch = setting()
    rows, free = torch.randn(ENTITIES, WIDTH), torch.randn(2, 2, WIDTH)
    entities = torch.tensor([[5, 6], [4, 2]])
    growth = torch.tensor([1.0, 1.5])
    chosen = (None, free) if kind == "vectors" else (entities, None)
    made = GeneratedNegatives(*chosen, torch.tensor(mask), torch.tensor([0, 3]), growth, 0.25)

    plain, whole = step(batch, rows), step(with_made(batch, made), rows)
    leaf = rows.clone().requires_grad_()
    expected = made_loss(model, batch, leaf, free if kind == "vectors" else leaf[entities], made)
    expected.backward()
    assert leaf.grad is not None
    assert float(whole.loss - plain.loss) == pytest.approx(expected.item(), abs=1e-5)
    assert torch.allclose(whole.rows - plain.rows, leaf.grad, atol=1e-5)
