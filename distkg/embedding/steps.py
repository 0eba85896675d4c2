"""Training steps on this rank: loss and gradients of a batch, given the rows that it uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.config import RunConfig
from distkg.embedding.batches import AllEntitiesBatch, Batch, QuerySampledBatch, SampledBatch
from distkg.embedding.model import TrainingModel
from distkg.kernels.gather_scatter import add_rows
from distkg.kernels.products import products_in
from distkg.kernels.scores.similarity import DOT, Similarity
from distkg.negatives import GeneratedNegatives
from distkg.objectives import ALL_ENTITIES, EXCLUDED, REGULARIZERS, SAMPLED, Answers, OneVsAll, spread
from distkg.training.precision import product_precision


@dataclass(frozen=True)
class StepResult:
    """Result of a training step; gradients of replicated parameters are in their ``.grad``.

    Attributes:
        loss: float32 scalar; the sum over ranks is the batch's loss.
        rows: float32 [u, entity_width], gradient of the rows fetched for the batch.
        every_row: float32 [rows of this rank, entity_width], gradient of this rank's own rows if the objective is over
            all entities; else None.
    """

    loss: Tensor
    rows: Tensor
    every_row: Tensor | None = None


class Step(Protocol):
    """Function that computes loss and gradients of a batch."""

    def __call__(self, batch: Batch, rows: Tensor) -> StepResult: ...


class SampledStep:
    """Step of objectives with sampled negatives: score answers and negatives, and compare the scores."""

    def __init__(self, model: TrainingModel, config: RunConfig) -> None:
        self._model = model
        self._objective = SAMPLED[config.objective.name](config.objective)
        self._penalty = Penalty(model, config)

    def __call__(self, batch: Batch, rows: Tensor) -> StepResult:
        assert isinstance(batch, SampledBatch)
        similarity, candidates = self._model.training_similarity, self._model.scorer.candidates
        scored = ScoredQueries(self._model, batch, rows)
        if batch.sharing > 1:
            drawn = GatheredRows(rows, batch.negatives.flatten())
            count = batch.negatives.shape[1]
            negative = score_shared(similarity, scored.query, candidates(drawn.rows), count, batch.sharing)
        else:
            drawn = GatheredRows(rows)
            negative = similarity.indexed(scored.query, candidates(drawn.rows), batch.negatives)
        if batch.mask is not None:
            negative = negative.masked_fill(batch.mask, EXCLUDED)
        loss = self._objective(scored.positive, negative).sum() + scored.penalty(self._penalty)
        if batch.made is not None:
            loss = loss + batch.made.weight * self._generated_loss(scored, batch.made, drawn)
        loss = loss / max(batch.queries, 1)  # of a step without queries, the loss is 0
        loss.backward()
        return StepResult(loss.detach(), gradient_of(rows, *scored.gathered, drawn))

    def _generated_loss(self, asked: ScoredQueries, made: GeneratedNegatives, drawn: GatheredRows) -> Tensor:
        """Loss of negatives generated per query (DANS-KGC, equation 15); vectors are constants, entities learn."""
        similarity, candidates = self._model.training_similarity, self._model.scorer.candidates
        if made.entities is not None:
            negative = similarity.indexed(asked.query, candidates(drawn.rows), made.entities)
        else:
            assert made.vectors is not None
            places = torch.arange(made.mask.numel(), device=made.mask.device).view(made.mask.shape)
            negative = similarity.indexed(asked.query, made.vectors.flatten(0, 1), places)
        negative = negative.masked_fill(made.mask, EXCLUDED)
        has_negatives = ~made.mask.all(1)
        return (self._objective(asked.positive, negative, made.growth) * has_negatives).sum()


class GatheredRows:
    """Rows of a batch, all or by index, as a leaf of the autograd graph."""

    def __init__(self, rows: Tensor, index: Tensor | None = None) -> None:
        self._index = index
        self.rows = (rows.detach() if index is None else rows.index_select(0, index)).requires_grad_()

    def add_gradient_to(self, total: Tensor) -> None:
        """Scatter-add the gradient to the gradient of the batch's rows."""
        if self.rows.grad is None:
            return
        if self._index is None:
            total += self.rows.grad
        else:
            add_rows(total, self._index, self.rows.grad)


class ScoredQueries:
    """Query vectors of a batch with one answer each, and the scores of the answers.

    Attributes:
        query: float32 [b, Q], training query vectors.
        positive: float32 [b], scores of the answers.
        taken: gathered anchor and answer rows.
    """

    def __init__(self, model: TrainingModel, batch: SampledBatch | QuerySampledBatch, rows: Tensor) -> None:
        self._anchor, self._answer = self.gathered = GatheredRows(rows, batch.anchor), GatheredRows(rows, batch.answer)
        self._relation = model.relation_rows(batch.relation)
        self.query = model.training_query(self._anchor.rows, batch.relation, self._relation)
        self.positive = model.training_similarity.pairs(self.query, model.scorer.candidates(self._answer.rows))

    def penalty(self, penalty: Penalty) -> Tensor:
        """Apply a penalty to all vectors used: scalar."""
        return penalty(self._anchor.rows, self._relation, self._answer.rows)


def gradient_of(rows: Tensor, *uses: GatheredRows) -> Tensor:
    """Sum the gradients of gathered rows to the gradient of a batch's rows, float32 [u, width]."""
    total = torch.zeros_like(rows)
    for gathered in uses:
        gathered.add_gradient_to(total)
    return total


def score_shared(similarity: Similarity, query: Tensor, drawn: Tensor, count: int, sharing: int) -> Tensor:
    """Score queries [B, Q] against shared negatives: [B, count].

    ``drawn`` [rows * count, C] holds the negatives of the first ``sharing`` queries, then of the next ones.
    """
    if not len(query):
        return query.new_empty(0, count)
    pairs = zip(query.split(sharing), drawn.split(count), strict=True)
    return torch.cat([similarity.block(chunk, candidates) for chunk, candidates in pairs])


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
        torch.autograd.backward([query, penalty], [grad_query, torch.ones_like(penalty)])
        every_row = _through_candidates(own, candidates, reduced.candidates)
        answer_penalty = self._penalty.of_answers(own.detach(), batch.answers.row, total, every_row)
        return StepResult(reduced.loss + penalty.detach() + answer_penalty, gradient_of(rows, anchor), every_row)


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
        self._penalty = Penalty(model, config)

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
        torch.autograd.backward([alignment, sampled], [torch.ones_like(alignment), self._weight * grad_sampled])
        every_row = _through_candidates(own, candidates, kept_away.candidates.mul_(self._weight))
        loss = alignment.detach() + self._weight * kept_away.loss
        return StepResult(loss, gradient_of(rows, *scored.gathered), every_row)


class NonNegativeStep:
    """Step without negatives (NonNeg of HaLE): attract answers, and keep all entities away from their centre.

    L = mean over queries of (s⁺ − b)² + λ · spread of all entities, where b is 0 for distances and 1 for inner
    products (section 4.1.2 of HaLE, in words).
    """

    def __init__(self, model: TrainingModel, config: RunConfig) -> None:
        self._model = model
        self._best = 1.0 if model.training_similarity is DOT else 0.0
        self._weight, self._radius = config.objective.uniformity, config.objective.radius
        self._penalty = Penalty(model, config)

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
        return StepResult(alignment.detach() + self._weight * loss, gradient_of(rows, *scored.gathered), every_row)


def _through_candidates(own: Tensor, candidates: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of entity rows from that of candidates; the same if candidates are the rows."""
    if candidates is own:
        return gradient
    (every_row,) = torch.autograd.grad(candidates, own, gradient)
    return every_row


class Penalty:
    """Weighted regularizer on the vectors of a batch; zero if none is configured."""

    def __init__(self, model: TrainingModel, config: RunConfig) -> None:
        self._scorer = model.scorer
        settings = config.regularizer
        self._norm = None if settings.name == "none" else REGULARIZERS[settings.name]
        self._entity = settings.weight
        self._relation = settings.weight if settings.relation_weight is None else settings.relation_weight

    def __call__(self, anchor: Tensor, relation: Tensor, answer: Tensor) -> Tensor:
        """Return the sum over queries: scalar."""
        if self._norm is None:
            return anchor.new_zeros(())
        first, second, third = self._scorer.factors(anchor, relation, answer)
        entity = self._norm(first) + self._norm(third)
        return (self._entity * entity + self._relation * self._norm(second)).sum()

    def of_queries(self, anchor: Tensor, relation: Tensor, count: Tensor) -> Tensor:
        """Return the part of anchors and relations of queries with ``count`` answers each: scalar."""
        if self._norm is None:
            return (anchor[:0].sum() + relation[:0].sum()) * 0
        first, second, _ = self._scorer.factors(anchor, relation, anchor)
        return (count * (self._entity * self._norm(first) + self._relation * self._norm(second))).sum()

    def of_answers(self, own: Tensor, row: Tensor, total: Tensor, every_row: Tensor) -> Tensor:
        """Return the part of the answers among this rank's rows, and add its gradient to ``every_row``."""
        if self._norm is None or not len(row):
            return own.new_zeros(())
        unique_rows, times = row.unique(return_counts=True)
        answer = own[unique_rows].requires_grad_()
        relation = own.new_zeros(1, self._scorer.relation_width)
        magnitude = self._scorer.factors(answer, relation, answer)[2]
        loss = (times * self._norm(magnitude)).sum() * self._entity / total
        (gradient,) = torch.autograd.grad(loss, answer)
        add_rows(every_row, unique_rows, gradient)
        return loss.detach()
