"""Training step of objectives over all entities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.config import RunConfig
from distkg.embedding.batches import AllEntitiesBatch, Batch
from distkg.embedding.model import TrainingModel
from distkg.embedding.steps.relation_prediction import RelationPrediction, RowUses
from distkg.embedding.steps.step import GatheredRows, Penalty, StepResult, gradient_of, through_candidates
from distkg.kernels.gather_scatter import add_rows
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
        self._penalty, self._relations = Penalty(model, config), RelationPrediction(model, config)

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
        every_row, to_rows = through_candidates(own, candidates, reduced.candidates), gradient_of(rows, anchor)
        answer_penalty = self._penalty.of_answers(
            own.detach(), batch.answers.row, batch.asked_relation, total, every_row
        )
        loss = reduced.loss + penalty.detach() + answer_penalty
        if self._relations.weight:
            loss += self._predict_relations(batch, rows, own.detach(), total, to_rows, every_row)
        return StepResult(loss, to_rows, every_row)

    def _predict_relations(
        self, batch: AllEntitiesBatch, rows: Tensor, own: Tensor, total: Tensor, to_rows: Tensor, every_row: Tensor
    ) -> Tensor:
        """Return this rank's part of the loss of relation prediction, and add its gradients; collective.

        An answer is compared where its row is. Anchors' rows are gathered, and their gradients scattered, as queries
        are.
        """
        ranks, answers = self._model.ranks, batch.answers
        anchors = rows.index_select(0, batch.anchor)
        everyone = ranks.all_gather(F.pad(anchors, (0, 0, 0, batch.width - len(anchors))))
        anchor = RowUses(everyone, answers.query, torch.zeros_like(everyone))
        answer = RowUses(own, answers.row, every_row)
        directions = batch.tail_answers, batch.head_answers
        loss = self._relations(anchor, answer, batch.asked_relation, directions, 1 / total)
        add_rows(to_rows, batch.anchor, ranks.reduce_scatter(anchor.gradient)[: len(anchors)])
        return loss
