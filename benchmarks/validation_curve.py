"""Validation MRR of a peer while it trains: exact filtered ranks at intervals of its training time.

Imports nothing of distkg, so that a peer's process starts as soon as its users' do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BATCH_SIZE = 128

Graph = Mapping[str, np.ndarray]
"""train, valid, test: int [n, 3]; sizes: entities, relations."""

Score = Callable[[Tensor], Tensor]
"""Function from queries int64 [b, 2], (anchor, relation), to scores of all entities, float32 [b, N]; relation r + R
asks for the heads of r."""


class Answers:
    """Distinct queries of triples in both directions, with the answers of each.

    Attributes:
        queries: int64 [u, 2], sorted.
        starts: int64 [u + 1], where the answers of each query start.
        answers: int64 [2n].
    """

    def __init__(self, triples: np.ndarray, num_relations: int) -> None:
        heads, relations, tails = triples.astype(np.int64).T
        anchors, asked = np.concatenate([heads, tails]), np.concatenate([relations, relations + num_relations])
        keys, row, counts = np.unique(anchors * 2 * num_relations + asked, return_inverse=True, return_counts=True)
        self._keys = keys
        self.queries = np.stack(np.divmod(keys, 2 * num_relations), 1)
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.answers = np.concatenate([tails, heads])[np.argsort(row, kind="stable")]

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the answers of queries, by row, one query after the other, and how many each has."""
        first, counts = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.answers[np.repeat(first, counts) + within], counts

    def rows(self, other: Answers) -> np.ndarray:
        """Return the rows of the queries of ``other``, all of which must be there."""
        return np.searchsorted(self._keys, other._keys)


class Validation:
    """Validation split of a graph, ranked among all entities, filtered by all splits, in both directions."""

    def __init__(self, graph: Graph) -> None:
        _, relations = graph["sizes"].tolist()
        self._valid = Answers(graph["valid"], relations)
        self._known = Answers(np.concatenate([graph[split] for split in ("train", "valid", "test")]), relations)
        self._row_in_known = self._known.rows(self._valid)

    def mrr(self, score: Score) -> float:
        """Return the MRR of realistic ranks, in which ties count half.

        Raises:
            ValueError: a score is NaN or infinite.
        """
        parts = range(0, len(self._valid.queries), BATCH_SIZE)
        with torch.no_grad():
            return float(torch.cat([self._reciprocal_ranks(score, low) for low in parts]).mean())

    def _reciprocal_ranks(self, score: Score, low: int) -> Tensor:
        """Return 1 / rank of the answers of a batch of queries: float64 [a]."""
        rows = np.arange(low, min(low + BATCH_SIZE, len(self._valid.queries)))
        scores = score(torch.from_numpy(self._valid.queries[rows]))
        if not scores.isfinite().all():
            raise ValueError("a score is not finite: the training has diverged")
        answer, query = _cells(*self._valid.of(rows))
        target = scores[query, answer][:, None]
        known, known_query = _cells(*self._known.of(self._row_in_known[rows]))
        scores[known_query, known] = -torch.inf  # the answer too, so that it does not tie with itself
        competitors = scores[query]
        greater, equal = (competitors > target).sum(1), (competitors == target).sum(1)
        return 1 / (1 + greater + equal.double() / 2)


def _cells(answers: np.ndarray, counts: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return answers and the query in the batch of each."""
    return torch.from_numpy(answers), torch.from_numpy(np.repeat(np.arange(len(counts)), counts))


class ValidationCurve:
    """Writes a JSON line for each validation, and keeps the time of training and of validations apart.

    Args:
        graph: validated on its split ``valid``.
        score: the model in training.
        path: file of the lines: ``training_seconds`` and ``validation_seconds`` since the start, ``epoch``, ``mrr``.
        interval: least seconds of training between two validations.
    """

    def __init__(self, graph: Graph, score: Score, path: Path, interval: float) -> None:
        started = time.perf_counter()
        self._validation, self._score, self._path, self._interval = Validation(graph), score, path, interval
        self._resumed = time.perf_counter()
        self._training, self._validating = 0.0, self._resumed - started

    def after_step(self, epoch: float) -> None:
        """Validate if ``interval`` seconds and a tenth of the training before have passed since the last validation."""
        now = time.perf_counter()
        if now - self._resumed >= max(self._interval, self._training / 10):
            self.validate(epoch)

    def validate(self, epoch: float) -> None:
        """Validate now, and append the line."""
        now = time.perf_counter()
        self._training += now - self._resumed
        mrr = self._validation.mrr(self._score)
        self._resumed = time.perf_counter()
        self._validating += self._resumed - now
        seconds = {"training_seconds": self._training, "validation_seconds": self._validating}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**seconds, "epoch": epoch, "mrr": mrr}) + "\n")
