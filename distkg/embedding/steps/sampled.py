"""Training step of objectives with sampled negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.config import RunConfig
from distkg.embedding.batches import Batch, SampledBatch
from distkg.embedding.model import TrainingModel
from distkg.embedding.steps.comparison import Comparison, compare
from distkg.embedding.steps.queries import BatchQueries, ComposedQueries, DifferentiatedQueries, composes
from distkg.embedding.steps.relation_prediction import RelationPrediction, RowUses
from distkg.embedding.steps.step import Penalty, StepResult, through_candidates
from distkg.kernels.products import products_in
from distkg.kernels.scores.similarity import DOT
from distkg.negatives import GeneratedNegatives
from distkg.objectives import EXCLUDED, SAMPLED


class SampledStep:
    """Step of objectives with sampled negatives: score answers and negatives, and compare the scores."""

    def __init__(self, model: TrainingModel, config: RunConfig) -> None:
        self._model = model
        self._objective = SAMPLED[config.objective.name](config.objective)
        self._penalty = Penalty(model, config)
        self._relations = RelationPrediction(model, config)
        self._composes = composes(model, config)
        reduced = model.ranks.device.type != "cpu" and model.training_similarity is DOT  # distances would be lost
        self._products = getattr(torch, config.train.precision) if reduced else torch.float32

    def __call__(self, batch: Batch, rows: Tensor) -> StepResult:
        assert isinstance(batch, SampledBatch)
        weight = 1 / max(batch.queries, 1)  # of a step without queries, the loss is 0
        queries = self._queries(batch, rows, weight)
        own = rows.detach().requires_grad_()
        candidates = self._model.scorer.candidates(own)
        similarity = self._model.training_similarity
        with products_in(self._products):
            compared = compare(similarity, self._objective, queries.query, candidates.detach(), batch, weight)
        if batch.made is not None:
            self._compare_generated(queries.query, candidates.detach(), batch, batch.made, weight, compared)
        to_rows = through_candidates(own, candidates, compared.to_candidates)
        queries.backward(compared.to_query, to_rows)
        anchor, answer = (RowUses(rows, index, to_rows) for index in (batch.anchor, batch.answer))
        predicted = self._relations(anchor, answer, batch.relation, batch.directions, weight)
        return StepResult(compared.loss + queries.penalty + predicted, to_rows)

    def _queries(self, batch: SampledBatch, rows: Tensor, weight: float) -> BatchQueries:
        if self._composes:
            return ComposedQueries(self._model, batch, rows, self._penalty, weight)
        penalty = self._penalty.weighted(weight)
        return DifferentiatedQueries(self._model, batch, rows, penalty)

    def _compare_generated(
        self,
        query: Tensor,
        candidates: Tensor,
        batch: SampledBatch,
        made: GeneratedNegatives,
        weight: float,
        compared: Comparison,
    ) -> None:
        """Add the loss of negatives generated per query (DANS-KGC, equation 15) and its gradients; vectors are
        constants, entities learn."""
        similarity = self._model.training_similarity
        query, candidates = query.detach().requires_grad_(), candidates.detach().requires_grad_()
        positive = similarity.indexed(query, candidates, batch.answer[:, None]).squeeze(1)
        if made.entities is not None:
            negative = similarity.indexed(query, candidates, made.entities)
        else:
            assert made.vectors is not None
            places = torch.arange(made.mask.numel(), device=made.mask.device).view(made.mask.shape)
            negative = similarity.indexed(query, made.vectors.flatten(0, 1), places)
        negative = negative.masked_fill(made.mask, EXCLUDED)
        has_negatives = ~made.mask.all(1)
        loss = (self._objective(positive, negative, made.growth) * has_negatives).sum() * (made.weight * weight)
        loss.backward()
        assert query.grad is not None
        assert candidates.grad is not None
        compared.loss.add_(loss.detach())
        compared.to_query.add_(query.grad)
        compared.to_candidates.add_(candidates.grad)
