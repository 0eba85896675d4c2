"""Interface of a training step on this rank: loss and gradients of a batch, given the rows that it uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from distkg.config import RunConfig
from distkg.embedding.batches import Batch
from distkg.embedding.model import TrainingModel
from distkg.embedding.scorers import Scorer
from distkg.kernels.gather_scatter import add_rows
from distkg.kernels.given_gradient import with_gradient
from distkg.kernels.jit import on_cpu
from distkg.kernels.scores.log_sum_exp import blocks
from distkg.objectives import PENALISES_PRODUCTS, REGULARIZERS, add_row_penalty, has_compiled_form

DUAL_FLOATS = 1 << 20
"""Floats of the relations or answers whose products are penalised together."""


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


def gradient_of(rows: Tensor, *uses: GatheredRows) -> Tensor:
    """Sum the gradients of gathered rows to the gradient of a batch's rows, float32 [u, width]."""
    total = torch.zeros_like(rows)
    for gathered in uses:
        gathered.add_gradient_to(total)
    return total


def through_candidates(own: Tensor, candidates: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of entity rows from that of candidates; the same if candidates are the rows."""
    if candidates is own:
        return gradient
    (every_row,) = torch.autograd.grad(with_gradient(candidates, gradient), own)
    return every_row.contiguous()


class Penalty:
    """Weighted regularizer on the vectors of a batch; zero if none is configured.

    It has a part of the entities' own vectors, and one of the relations' vectors, or of products with relations.

    Attributes:
        compiled: whether ``of_rows``, and ``of_relations`` or a composition, compute it.
        product_weight: weight of ‖hR‖² and ‖tRᵀ‖²; None for a regularizer of relation vectors.
    """

    def __init__(self, model: TrainingModel, config: RunConfig) -> None:
        self._model, self._scorer = model, model.scorer
        settings = config.regularizer
        self._name, self._parts = settings.name, model.scorer.number_parts
        products = settings.name in PENALISES_PRODUCTS
        by_numbers = type(model.scorer).factors is Scorer.factors and has_compiled_form(self._name, self._parts)
        self.compiled = settings.name == "none" or (by_numbers and (not products or model.scorer.tied_inverse))
        self._norm = None if settings.name == "none" else REGULARIZERS[settings.name]
        self._entity = settings.weight * settings.vector_factor if products else settings.weight
        self._relation = settings.weight if settings.relation_weight is None else settings.relation_weight
        self.product_weight = settings.weight * settings.product_factor if products else None

    def __call__(self, anchor: Tensor, relation: Tensor, answer: Tensor) -> Tensor:
        """Return the sum over queries: scalar."""
        if self._norm is None:
            return anchor.new_zeros(())
        first, second, third = self._scorer.factors(anchor, relation, answer)
        entity = self._entity * (self._norm(first) + self._norm(third))
        if self.product_weight is None:
            return (entity + self._relation * self._norm(second)).sum()
        products = self._scorer.forward_product(anchor, relation), self._scorer.dual_product(answer, relation)
        return (entity + self.product_weight * (self._norm(products[0]) + self._norm(products[1]))).sum()

    def weighted(self, weight: float) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """Return ``weight`` times the penalty as a function of rows; None if none is configured."""
        return None if self._norm is None else lambda *rows: self(*rows) * weight

    def of_rows(self, rows: Tensor, used: Tensor, weight: float, to_rows: Tensor) -> Tensor:
        """Return ``weight`` times the part of entity rows, of which ``used`` int64 [k] are penalised as often as they
        occur, and add its gradient to ``to_rows``; no autograd."""
        if self._norm is None:
            return rows.new_zeros(())
        count = torch.bincount(used, minlength=len(rows))
        return add_row_penalty(self._name, self._parts, rows, count, self._entity * weight, to_rows)

    def of_relations(self, relation: Tensor, used: Tensor) -> Tensor:
        """Return the part of relation rows, as ``of_rows``: scalar, differentiable."""
        if self._norm is None or self.product_weight is not None:
            return relation.new_zeros(())
        count = torch.bincount(used, minlength=len(relation))
        nobody = relation.new_zeros(1, self._scorer.entity_width)
        magnitude = self._scorer.factors(nobody, relation, nobody)[1]
        return (count * self._norm(magnitude)).sum() * self._relation

    def of_queries(self, anchor: Tensor, relation: Tensor, count: Tensor) -> Tensor:
        """Return the part of anchors and relations of queries with ``count`` answers each: scalar."""
        if self._norm is None:
            return (anchor[:0].sum() + relation[:0].sum()) * 0
        first, second, _ = self._scorer.factors(anchor, relation, anchor)
        if self.product_weight is None:
            other = self._relation * self._norm(second)
        else:
            other = self.product_weight * self._norm(self._scorer.forward_product(anchor, relation))
        return (count * (self._entity * self._norm(first) + other)).sum()

    def of_answers(self, own: Tensor, row: Tensor, asked: Tensor, total: Tensor, every_row: Tensor) -> Tensor:
        """Return the part of the answers among this rank's rows, and add its gradient to ``every_row``.

        Args:
            row, asked: int64 [a], rows of the answers and relations of their queries.
            total: number of answers on all ranks, scalar.
        """
        if self._norm is None or not len(row):
            return own.new_zeros(())
        unique_rows, times = row.unique(return_counts=True) if on_cpu(row) else _times_of_all(row, len(own))
        answer = own[unique_rows].requires_grad_()
        relation = own.new_zeros(1, self._scorer.relation_width)
        magnitude = self._scorer.factors(answer, relation, answer)[2]
        loss = (times * self._norm(magnitude)).sum() * self._entity / total
        (gradient,) = torch.autograd.grad(loss, answer)
        add_rows(every_row, unique_rows, gradient)
        if self.product_weight is None:
            return loss.detach()
        return loss.detach() + self._of_dual_products(own, row, asked, self.product_weight / total, every_row)

    def _of_dual_products(self, own: Tensor, row: Tensor, asked: Tensor, weight: Tensor, every_row: Tensor) -> Tensor:
        """Return ``weight`` · Σ ‖tRᵀ‖² over answers, and add its gradients to ``every_row`` and to the parameters."""
        assert self._norm is not None
        ids = torch.arange(2 * self._model.num_relations, device=row.device)
        relations = self._model.relation_rows(ids)
        to_relations, total = torch.zeros_like(relations), own.new_zeros(())
        for low, high in blocks(len(row), max(1, DUAL_FLOATS // max(relations.shape[1], own.shape[1]))):
            answer = own.index_select(0, row[low:high]).requires_grad_()
            relation = relations.detach().index_select(0, asked[low:high]).requires_grad_()
            loss = self._norm(self._scorer.dual_product(answer, relation)).sum() * weight
            loss.backward()
            assert answer.grad is not None
            assert relation.grad is not None
            total += loss.detach()
            add_rows(every_row, row[low:high], answer.grad)
            add_rows(to_relations, asked[low:high], relation.grad)
        with_gradient(relations, to_relations).backward()
        return total


def _times_of_all(row: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return all of so many rows, and how often each occurs: a device need not be waited for to tell which do."""
    times = torch.zeros(rows, dtype=row.dtype, device=row.device).index_add_(0, row, torch.ones_like(row))
    return torch.arange(rows, device=row.device), times
