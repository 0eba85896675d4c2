"""Relation prediction: an auxiliary loss that ranks the relation of a query among all relations of its direction.

Chen et al. 2021 (arXiv 2110.02834) add −λ log P(r | h, t) to the two losses of a fact, log P being that of a
softmax of the same scores over all relations. Here every fact is two queries, so each query (anchor, relation) with an
answer adds −λ log P(relation | anchor, answer) to its own loss, among the R relations of its direction: [0, R) of tail
queries, [R, 2R) of head queries. With tied inverses both are the paper's term. With learned ones each direction learns
from its own; the authors' code compares a relation with those of the other direction too, among which the inverse of a
symmetric relation is no wrong answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.config import RunConfig
from distkg.embedding.activation import ActivatedHardness
from distkg.embedding.batches import Directions
from distkg.embedding.model import TrainingModel
from distkg.embedding.scorers import Scorer
from distkg.embedding.scorers.batch_norm import running_statistics
from distkg.kernels.gather_scatter import add_rows
from distkg.kernels.given_gradient import with_gradient
from distkg.kernels.scores.log_sum_exp import blocks
from distkg.kernels.scores.similarity import Similarity

BLOCK_FLOATS = 1 << 20
"""Floats of the query vectors, or of the scores with the vectors of their pairs, that are computed together."""


@dataclass(frozen=True)
class RowUses:
    """Rows by index, with the gradient of all rows.

    Attributes:
        rows: float32 [u, entity_width].
        index: int64 [b].
        gradient: float32 [u, entity_width], added to in place.
    """

    rows: Tensor
    index: Tensor
    gradient: Tensor

    def of(self, queries: Tensor | slice) -> RowUses:
        """Return the uses by some queries."""
        return RowUses(self.rows, self.index[queries], self.gradient)

    def leaf(self, low: int, high: int) -> Tensor:
        """Return the rows of the uses low … high - 1, a leaf of the autograd graph."""
        return self.rows.index_select(0, self.index[low:high]).requires_grad_()

    def add(self, low: int, leaf: Tensor) -> None:
        """Add the gradient of the leaf of the uses from ``low`` on."""
        if leaf.grad is not None:
            add_rows(self.gradient, self.index[low : low + len(leaf)], leaf.grad)


class RelationPrediction:
    """Weighted sum over queries of −λ log P(relation | anchor, answer).

    Dropout of vectors is drawn once for each query and once for each relation of a call. Batch norms use their running
    statistics, which are those of true queries; all relations of an anchor would be others.

    Attributes:
        weight: λ; 0 if the loss is not configured.
    """

    def __init__(self, model: TrainingModel, config: RunConfig) -> None:
        self.weight = config.objective.relation_prediction
        self._model = model
        plain = bool(self.weight) and not isinstance(model.hardness, ActivatedHardness)
        self._is_direct = plain and has_relation_queries(model.scorer, model.ranks.device)

    def __call__(
        self, anchor: RowUses, answer: RowUses, relation: Tensor, directions: Directions, weight: float | Tensor
    ) -> Tensor:
        """Add the gradients of the loss to those of rows and parameters, and return it: float32 scalar, no autograd.

        Args:
            anchor, answer: rows of the queries and of their answers, b uses each.
            relation: int64 [b] in [0, 2R).
            directions: places of the tail queries and of the head queries among the b.
            weight: factor on the losses of each query; this one has the factor λ too.
        """
        loss, count = anchor.rows.new_zeros(()), self._model.num_relations
        if not self.weight:
            return loss
        with running_statistics(self._model.scorer):
            for first, queries in zip((0, count), directions, strict=True):
                ids = torch.arange(first, first + count, device=relation.device)
                target = relation[queries] - first
                if len(target):
                    loss += self._add(anchor.of(queries), answer.of(queries), target, ids, self.weight * weight)
        return loss

    def _add(self, anchor: RowUses, answer: RowUses, target: Tensor, ids: Tensor, weight: float | Tensor) -> Tensor:
        """Compute the loss of queries whose relations are ``ids[target]``."""
        operands = self._model.relation_operands(ids)
        leaf, total = operands.detach().requires_grad_(), anchor.rows.new_zeros(())
        for low, high in self._blocks(len(target), leaf):
            anchors, answers = anchor.leaf(low, high), answer.leaf(low, high)
            scores = self._scores(anchors, answers, leaf, ids)
            loss = F.cross_entropy(scores, target[low:high], reduction="sum") * weight
            loss.backward()
            total += loss.detach()
            anchor.add(low, anchors)
            answer.add(low, answers)
        assert leaf.grad is not None
        with_gradient(operands, leaf.grad).backward()
        return total

    def _scores(self, anchor: Tensor, answer: Tensor, operands: Tensor, ids: Tensor) -> Tensor:
        """Return the training scores of pairs [b, entity_width] with all relations: [b, R], differentiable."""
        model = self._model
        queries = None if self._is_direct else model.cross_queries(anchor, operands, ids)
        anchor = model.dropout(anchor) if self._is_direct else anchor
        return relation_scores(model.scorer, model.training_similarity, anchor, answer, operands, queries)

    def _blocks(self, queries: int, operands: Tensor) -> Iterator[tuple[int, int]]:
        """Yield ranges of queries whose relations are compared together."""
        relations, width = operands.shape
        floats = relations + width if self._is_direct else relations * self._model.scorer.entity_width
        return blocks(queries, max(1, BLOCK_FLOATS // floats))


def has_relation_queries(scorer: Scorer, device: torch.device) -> bool:
    """Return True if a scorer, whose layers are on a device, has ``relation_queries``."""
    nobody = torch.empty(0, scorer.entity_width, device=device)
    with running_statistics(scorer):
        return scorer.relation_queries(nobody, nobody) is not None


def relation_scores(
    scorer: Scorer, similarity: Similarity, anchor: Tensor, answer: Tensor, operands: Tensor, queries: Tensor | None
) -> Tensor:
    """Return the scores of pairs with all relations, but for a number of each pair: float32 [b, R], differentiable.

    Args:
        anchor, answer: float32 [b, entity_width].
        operands: float32 [R, O].
        queries: float32 [b · R, Q], query vectors of every anchor with every relation; None for a scorer with
            ``relation_queries``.
    """
    if queries is None:
        pairs = scorer.relation_queries(anchor, answer)
        assert pairs is not None
        return similarity.block(pairs, operands)
    place = torch.arange(len(anchor), device=anchor.device).repeat_interleave(len(operands))
    return similarity.indexed(queries, scorer.candidates(answer), place[:, None]).view(-1, len(operands))
