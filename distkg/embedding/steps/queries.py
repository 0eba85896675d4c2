"""Queries of a batch as a step uses them, and the way of their gradients back to rows and parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from distkg.config import RunConfig
from distkg.embedding.activation import ActivatedHardness
from distkg.embedding.batches import SampledBatch
from distkg.embedding.model import TrainingModel
from distkg.embedding.steps.step import GatheredRows, Penalty
from distkg.kernels.given_gradient import with_gradient
from distkg.kernels.jit import on_cpu

WeightedPenalty = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function of anchor, relation and answer rows, [b, ·] each, to a differentiable scalar."""


class BatchQueries(Protocol):
    """Queries of a batch.

    Attributes:
        query: float32 [b, Q], training query vectors; no autograd.
        penalty: float32 scalar, the weighted penalty on the vectors of the batch.
    """

    query: Tensor
    penalty: Tensor

    def backward(self, to_query: Tensor, to_rows: Tensor) -> None:
        """Add the gradient of Σ to_query·query + penalty to that of the batch's rows, and to the parameters'."""
        ...


class DifferentiatedQueries:
    """Queries of any scorer, by autograd."""

    def __init__(
        self, model: TrainingModel, batch: SampledBatch, rows: Tensor, penalty: WeightedPenalty | None
    ) -> None:
        """``penalty`` is weighted; None if there is none."""
        anchor = GatheredRows(rows, batch.anchor)
        relation = model.relation_rows(batch.relation)
        self._gathered = [anchor]
        self._query = model.training_query(anchor.rows, batch.relation, relation)
        self.query = self._query.detach()
        self._penalty = rows.new_zeros(())
        if penalty is not None:
            answer = GatheredRows(rows, batch.answer)
            self._gathered.append(answer)
            self._penalty = penalty(anchor.rows, relation, answer.rows)
        self.penalty = self._penalty.detach()

    def backward(self, to_query: Tensor, to_rows: Tensor) -> None:
        (self._penalty + with_gradient(self._query, to_query)).backward()
        for gathered in self._gathered:
            gathered.add_gradient_to(to_rows)


class ComposedQueries:
    """Queries by the compiled composition of a scorer that has one; see `composes`.

    ``penalty`` is known after ``backward``.
    """

    def __init__(
        self,
        model: TrainingModel,
        batch: SampledBatch,
        rows: Tensor,
        penalty: Penalty | None = None,
        weight: float = 1.0,
    ) -> None:
        """``penalty`` is multiplied by ``weight``; None if there is none."""
        composition = model.scorer.composition
        assert composition is not None
        self._batch, self._regularizer, self._weight = batch, penalty, weight
        self._model, self._composition, self._rows = model, composition, rows
        ids, self._place = _relations(model, batch.relation)
        self._relations = model.relation_rows(ids)
        self._operands = model.scorer.operand(self._relations)
        self.query = rows.new_empty(len(batch.anchor), rows.shape[1])
        self.penalty = rows.new_zeros(())
        composition.compose(*self._inputs(batch.anchor, self._operands), self.query.numpy())

    def _inputs(self, entity: Tensor, operands: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        parts = (self._rows, entity, operands, self._place)
        rows, places, relations, place = (part.detach().contiguous().numpy() for part in parts)
        return rows, places, relations, place

    def backward(self, to_query: Tensor, to_rows: Tensor) -> None:
        regularizer, weight = self._regularizer, self._weight
        if regularizer is None:
            self._through(self._batch.anchor, self._operands, to_query, to_rows).backward()
            return
        loss, penalised = regularizer.of_relations(self._relations, self._place) * weight, self.query.new_zeros(())
        if regularizer.product_weight is not None:
            to_products = 2 * weight * regularizer.product_weight
            dual, operands = self._dual_products()
            loss = loss + self._through(self._batch.answer, operands, dual * to_products, to_rows)
            to_query = to_query.add(self.query, alpha=to_products)
            penalised = (dual.square().sum() + self.query.square().sum()) * (to_products / 2)
        (loss + self._through(self._batch.anchor, self._operands, to_query, to_rows)).backward()
        both = torch.cat([self._batch.anchor, self._batch.answer])
        self.penalty = loss.detach() + penalised + regularizer.of_rows(self._rows, both, weight, to_rows)

    def _dual_products(self) -> tuple[Tensor, Tensor]:
        """Return tRᵀ of the answers, [b, Q], and the operands of the inverse relations."""
        scorer = self._model.scorer
        operands, products = scorer.operand(scorer.inverse(self._relations)), torch.empty_like(self.query)
        self._composition.compose(*self._inputs(self._batch.answer, operands), products.numpy())
        return products, operands

    def _through(self, entity: Tensor, operands: Tensor, gradient: Tensor, to_rows: Tensor) -> Tensor:
        """Add the gradient of composed rows to ``to_rows``; return 0, whose gradient by operands is theirs."""
        to_operands = torch.zeros_like(operands, memory_format=torch.contiguous_format)
        arrays = gradient.contiguous().numpy(), *self._inputs(entity, operands)
        self._composition.add_gradients(*arrays, to_rows.numpy(), to_operands.numpy())
        return with_gradient(operands, to_operands)


def composes(model: TrainingModel, config: RunConfig) -> bool:
    """Return True if the queries of a configuration are those of its scorer's composition alone, on CPU, and their
    penalty has a compiled form."""
    plain = isinstance(model.dropout, nn.Identity) and not isinstance(model.hardness, ActivatedHardness)
    compiled = Penalty(model, config).compiled and not config.train.compile
    return model.scorer.is_composed and plain and compiled and on_cpu(model.relations)


def _relations(model: TrainingModel, relation: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids of relations, at least those of a batch, each once, and the place of the batch's [b] among them."""
    everyone = 2 * model.num_relations
    if everyone <= len(relation):
        return torch.arange(everyone, device=relation.device), relation
    ids, place = torch.unique(relation, return_inverse=True)
    return ids, place
