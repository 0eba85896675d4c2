"""ComplEx with reciprocal relations, N3 and Adagrad in plain PyTorch: autograd, all scores of a batch or a sample.

A peer of ``time_to_mrr``, started as a program of its own. The model and the loss are those of Lacroix et al. 2018
(arXiv 1806.07297; facebookresearch/kbc): a batch of single queries has the cross entropy of each answer among all
entities. Grouped queries have the same loss, but the queries of an epoch are distinct and have all of their answers,
as in K-vs-all, so that an epoch multiplies fewer queries with the entities. Sampled queries have the cross entropy of
the answer among entities that are drawn for the step, and sparse gradients.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.validation_curve import Answers, Graph, ValidationCurve


@dataclass(frozen=True)
class Setting:
    """Settings of a training.

    Attributes:
        dim: real floats of a vector, twice the rank.
        batch_size: queries of a step.
        learning_rate: of Adagrad.
        n3: weight of Σ |x|³ over the three vectors of a triple.
        grouped: distinct queries with all their answers instead of one query for each triple and direction.
        negatives: entities that are drawn uniformly for all queries of a step and scored beside the answers; 0 for all
            entities. Queries must be single.
        epochs: number of epochs over which the learning rate falls linearly to 0; 0 for a constant rate without an end.
        initial_scale: standard deviation of the initial vectors.
    """

    dim: int
    batch_size: int
    learning_rate: float
    n3: float
    grouped: bool = False
    negatives: int = 0
    epochs: int = 0
    initial_scale: float = 1e-3


class PlainComplEx(nn.Module):
    """Rows [real half | imaginary half] of N entities and 2R relations."""

    def __init__(self, entities: int, relations: int, dim: int, initial_scale: float) -> None:
        super().__init__()
        self.entities = nn.Parameter(initial_scale * torch.randn(entities, dim))
        self.relations = nn.Parameter(initial_scale * torch.randn(2 * relations, dim))

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Return the complex products of vectors [B, d]."""
        real, imaginary = anchor.chunk(2, dim=1)
        by_real, by_imaginary = relation.chunk(2, dim=1)
        return torch.cat((real * by_real - imaginary * by_imaginary, real * by_imaginary + imaginary * by_real), dim=1)

    def scores(self, queries: Tensor) -> Tensor:
        """Score all entities for queries int64 [b, 2]: float32 [b, N]."""
        anchor, relation = queries.T
        return self.query(self.entities[anchor], self.relations[relation]) @ self.entities.T

    def loss(self, queries: Tensor, answers: Tensor, counts: Tensor, n3: float) -> Tensor:
        """Return the mean over answers of −log P(answer | query), and of the penalty of its triple.

        Args:
            queries: int64 [B, 2].
            answers: int64 [A], those of the first query first.
            counts: int64 [B], answers of each query.
            n3: weight of the penalty.
        """
        anchor, relation = self.entities[queries[:, 0]], self.relations[queries[:, 1]]
        query, answer = self.query(anchor, relation), self.entities[answers]
        row = torch.repeat_interleave(torch.arange(len(counts)), counts)
        scores = query @ self.entities.T
        cross_entropy = (counts * torch.logsumexp(scores, 1)).sum() - scores[row, answers].sum()
        penalty = (counts * (_cubes(anchor) + _cubes(relation))).sum() + _cubes(answer).sum()
        return (cross_entropy + n3 * penalty) / len(answers)

    def sampled_loss(self, queries: Tensor, answers: Tensor, negatives: Tensor, n3: float) -> Tensor:
        """Return the mean of −log P(answer | query) among answer and negatives, and of the penalty of the triple.

        Args:
            queries: int64 [B, 2].
            answers: int64 [B].
            negatives: int64 [K].
            n3: weight of the penalty.
        """
        anchor, answer, negative = (
            F.embedding(ids, self.entities, sparse=True) for ids in (queries[:, 0], answers, negatives)
        )
        relation = F.embedding(queries[:, 1], self.relations, sparse=True)
        query = self.query(anchor, relation)
        positive = (query * answer).sum(1, keepdim=True)
        scores = torch.cat([positive, query @ negative.T], 1)
        penalty = _cubes(anchor) + _cubes(relation) + _cubes(answer)
        return (torch.logsumexp(scores, 1) - positive[:, 0] + n3 * penalty).mean()


def _cubes(vectors: Tensor) -> Tensor:
    """Return Σ |x|³ over the complex numbers of each row."""
    real, imaginary = vectors.chunk(2, dim=1)
    return (real.square() + imaginary.square() + 1e-30).pow(1.5).sum(1)


class Epochs:
    """Training queries, in random order in each epoch."""

    def __init__(self, graph: Graph, setting: Setting, seed: int) -> None:
        _, relations = graph["sizes"].tolist()
        self._train, self._batch_size = Answers(graph["train"], relations), setting.batch_size
        self._grouped, self._rng = setting.grouped, np.random.default_rng(seed)

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
        """Yield the queries, the answers and their counts of each step of an epoch, and the share that is done then."""
        items = len(self._train.queries) if self._grouped else len(self._train.answers)
        order = self._rng.permutation(items)
        for low in range(0, items, self._batch_size):
            batch = order[low : low + self._batch_size]
            if self._grouped:
                rows = batch
                answers, counts = self._train.of(rows)
            else:
                rows = np.searchsorted(self._train.starts, batch, side="right") - 1
                answers, counts = self._train.answers[batch], np.ones_like(batch)
            queries = torch.from_numpy(self._train.queries[rows])
            yield queries, torch.from_numpy(answers), torch.from_numpy(counts), (low + len(batch)) / items


def train(graph: Graph, setting: Setting, curve_file: Path, interval: float, seed: int) -> None:
    """Train until the last epoch, if there is one, or until the process is ended."""
    torch.manual_seed(seed)
    entities, relations = graph["sizes"].tolist()
    model = PlainComplEx(entities, relations, setting.dim, setting.initial_scale)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=setting.learning_rate)
    epochs = Epochs(graph, setting, seed)
    curve = ValidationCurve(graph, model.scores, curve_file, interval)
    for epoch in range(setting.epochs) if setting.epochs else count():
        for queries, answers, counts, done in epochs.batches():
            if setting.epochs:
                for group in optimizer.param_groups:
                    group["lr"] = setting.learning_rate * (1 - (epoch + done) / setting.epochs)
            if setting.negatives:
                drawn = torch.randint(entities, (setting.negatives,))
                loss = model.sampled_loss(queries, answers, drawn, setting.n3)
            else:
                loss = model.loss(queries, answers, counts, setting.n3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.after_step(epoch + done)
    curve.validate(setting.epochs)


def main() -> None:
    """``GRAPH.npz CURVE THREADS INTERVAL SEED SETTING``: train, and append each validation to CURVE."""
    graph, curve, threads, interval, seed, setting = sys.argv[1:]
    torch.set_num_threads(int(threads))
    with np.load(graph) as arrays:
        train(dict(arrays), Setting(**json.loads(setting)), Path(curve), float(interval), int(seed))


if __name__ == "__main__":
    main()
