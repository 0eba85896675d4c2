"""Training steps of HaLE: query sampling, and its baseline without negatives."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distkg.config import RunConfig
from distkg.embedding.batches import Batch, QuerySampledBatch
from distkg.embedding.model import TrainingModel
from distkg.embedding.steps.relation_prediction import RelationPrediction, RowUses
from distkg.embedding.steps.step import GatheredRows, Penalty, StepResult, gradient_of, through_candidates
from distkg.kernels.given_gradient import with_gradient
from distkg.kernels.products import products_in
from distkg.kernels.scores.similarity import DOT
from distkg.objectives import Answers, OneVsAll, spread
from distkg.training.precision import product_precision


class ScoredQueries:
    """Query vectors of a batch with one answer each, and the scores of the answers; differentiable.

    Attributes:
        query: float32 [b, Q], training query vectors.
        positive: float32 [b], scores of the answers.
        gathered: anchor and answer rows.
    """

    def __init__(self, model: TrainingModel, batch: QuerySampledBatch, rows: Tensor) -> None:
        self._anchor, self._answer = self.gathered = GatheredRows(rows, batch.anchor), GatheredRows(rows, batch.answer)
        self._relation = model.relation_rows(batch.relation)
        self.query = model.training_query(self._anchor.rows, batch.relation, self._relation)
        self.positive = model.training_similarity.pairs(self.query, model.scorer.candidates(self._answer.rows))

    def penalty(self, penalty: Penalty) -> Tensor:
        """Apply a penalty to all vectors used: scalar."""
        return penalty(self._anchor.rows, self._relation, self._answer.rows)


def _with_relations(
    predict: RelationPrediction, batch: QuerySampledBatch, rows: Tensor, to_rows: Tensor, loss: Tensor
) -> Tensor:
    """Return a loss with that of relation prediction, whose gradients are added to ``to_rows`` and parameters."""
    anchor, answer = (RowUses(rows, index, to_rows) for index in (batch.anchor, batch.answer))
    return loss + predict(
        anchor, answer, batch.relation, (batch.tail_queries, batch.head_queries), 1 / max(batch.queries, 1)
    )


class QuerySamplingStep:
    """Step of query sampling (HaLE, eq. 5 and 9): attract answers, and repel all entities from sampled queries.

    L = mean over all queries of h(c d²)² + λ · mean over sampled queries of log Σ over entities of exp(−h(c d²)), with
    or without the square as configured. Without an activation, −h(c d²) is replaced by the score.
    """

    def __init__(self, model: TrainingModel, config: RunConfig) -> None:
        self._model = model
        self._square, self._weight = config.objective.square_positives, config.objective.uniformity
        self._uniformity = OneVsAll(config.objective)
        self._products = product_precision(config, model.ranks.device)
        self._penalty, self._relations = Penalty(model, config), RelationPrediction(model, config)

    def __call__(self, batch: Batch, rows: Tensor) -> StepResult:
        assert isinstance(batch, QuerySampledBatch)
        model, ranks = self._model, self._model.ranks
        scored = ScoredQueries(model, batch, rows)
        alignment = (scored.positive.square() if self._square else -scored.positive).sum()
        alignment = (alignment + scored.penalty(self._penalty)) / max(batch.queries, 1)

        sampled = scored.query[batch.sampled]
        own = model.entities.local.float().detach().requires_grad_()
        candidates = model.scorer.candidates(own)
        everyone = ranks.all_gather(F.pad(sampled.detach(), (0, 0, 0, batch.width - len(sampled))))
        with products_in(self._products):
            kept_away = self._uniformity(
                model.training_similarity,
                everyone,
                candidates.detach(),
                Answers.none(batch.live),
                ranks,
                model.num_entities,
            )
        grad_sampled = ranks.reduce_scatter(kept_away.query)[: len(sampled)]
        (alignment + with_gradient(sampled, self._weight * grad_sampled)).backward()
        every_row = through_candidates(own, candidates, kept_away.candidates.mul_(self._weight))
        to_rows = gradient_of(rows, *scored.gathered)
        loss = alignment.detach() + self._weight * kept_away.loss
        return StepResult(_with_relations(self._relations, batch, rows, to_rows, loss), to_rows, every_row)


class NonNegativeStep:
    """Step without negatives (NonNeg of HaLE): attract answers, and keep all entities away from their centre.

    L = mean over queries of (s⁺ − b)² + λ · spread of all entities, where b is 0 for distances and 1 for inner
    products (section 4.1.2 of HaLE, in words).
    """

    def __init__(self, model: TrainingModel, config: RunConfig) -> None:
        self._model = model
        self._best = 1.0 if model.training_similarity is DOT else 0.0
        self._weight, self._radius = config.objective.uniformity, config.objective.radius
        self._penalty, self._relations = Penalty(model, config), RelationPrediction(model, config)

    def __call__(self, batch: Batch, rows: Tensor) -> StepResult:
        assert isinstance(batch, QuerySampledBatch)
        model = self._model
        scored = ScoredQueries(model, batch, rows)
        alignment = (scored.positive - self._best).square().sum()
        alignment = (alignment + scored.penalty(self._penalty)) / max(batch.queries, 1)
        alignment.backward()
        own = model.entities.local.float()
        loss, every_row = spread(own, self._radius, model.num_entities, model.ranks)
        every_row *= self._weight
        to_rows = gradient_of(rows, *scored.gathered)
        loss = alignment.detach() + self._weight * loss
        return StepResult(_with_relations(self._relations, batch, rows, to_rows, loss), to_rows, every_row)
