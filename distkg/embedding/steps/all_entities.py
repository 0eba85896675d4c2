"""Training step of objectives over all entities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distkg.config import RunConfig
from distkg.embedding.batches import AllEntitiesBatch, Batch
from distkg.embedding.model import TrainingModel
from distkg.embedding.steps.step import GatheredRows, Penalty, StepResult, gradient_of, through_candidates
from distkg.kernels.given_gradient import with_gradient
from distkg.kernels.products import products_in
from distkg.objectives import ALL_ENTITIES
from distkg.training.precision import product_precision


class AllEntitiesStep:
    """Step of objectives over all entities: every rank scores its own rows for every query."""

    def __init__(self, model: TrainingModel, config: RunConfig) -> None:
        self._model = model
        self._objective = ALL_ENTITIES[config.objective.name](config.objective)
        self._products = product_precision(config, model.ranks.device)
        self._penalty = Penalty(model, config)

    def __call__(self, batch: Batch, rows: Tensor) -> StepResult:
        assert isinstance(batch, AllEntitiesBatch)
        model, ranks = self._model, self._model.ranks
        anchor = GatheredRows(rows, batch.anchor)
        relation = model.relation_rows(batch.relation)
        query = model.training_query(anchor.rows, batch.relation, relation)
        own = model.entities.local.float().detach().requires_grad_()
        candidates = model.scorer.candidates(own)
        padded = F.pad(query.detach(), (0, 0, 0, batch.width - len(query)))
        everyone = ranks.all_gather(padded)
        with products_in(self._products):
            reduced = self._objective(
                model.training_similarity, everyone, candidates.detach(), batch.answers, ranks, model.num_entities
            )
        grad_query = ranks.reduce_scatter(reduced.query)[: len(query)]
        total = batch.answers.count.sum().clamp_min(1)
        penalty = self._penalty.of_queries(anchor.rows, relation, batch.count) / total
        (penalty + with_gradient(query, grad_query)).backward()
        every_row = through_candidates(own, candidates, reduced.candidates)
        answer_penalty = self._penalty.of_answers(own.detach(), batch.answers.row, total, every_row)
        return StepResult(reduced.loss + penalty.detach() + answer_penalty, gradient_of(rows, anchor), every_row)
