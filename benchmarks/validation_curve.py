"""Validation MRR of a peer while it trains: distkg's exact filtered ranking at intervals of its training time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import known_answers_of
from distkg.data.store.graph_store import Store
from distkg.evaluation.metrics import ranking_metrics
from distkg.evaluation.ranking import Score, rank_by_scores

BATCH_SIZE = 256


class Validation:
    """Validation split of a store, ranked exactly: among all entities, filtered by all splits, in both directions."""

    def __init__(self, store: Store) -> None:
        self._triples, self._relations = store.triples("valid"), store.num_relations
        self._known = known_answers_of(store, self._triples)

    def mrr(self, score: Score) -> float:
        """Return the MRR of realistic ranks; ``score`` maps queries int [b, 2] to float32 [b, N].

        A query is (anchor, relation), where relation r + R asks for the heads of r.
        """
        with torch.no_grad():
            ranking = rank_by_scores(score, self._triples, self._known, self._relations, batch_size=BATCH_SIZE)
        return ranking_metrics(ranking)["mrr"]


class ValidationCurve:
    """Writes a JSON line for each validation, and keeps the time of training and of validations apart.

    Args:
        validation: what is ranked.
        score: the model in training, as for `Validation.mrr`.
        path: file of the lines: ``training_seconds`` and ``validation_seconds`` since the start, ``epoch``, ``mrr``.
        interval: seconds of training between two validations.
    """

    def __init__(self, validation: Validation, score: Score, path: Path, interval: float) -> None:
        self._validation, self._score, self._path, self._interval = validation, score, path, interval
        self._training = self._validating = 0.0
        self._resumed = time.perf_counter()

    def after_step(self, epoch: float) -> None:
        """Validate if ``interval`` seconds of training have passed since the last validation, or since the start."""
        now = time.perf_counter()
        if now - self._resumed < self._interval:
            return
        self._training += now - self._resumed
        mrr = self._validation.mrr(self._score)
        self._resumed = time.perf_counter()
        self._validating += self._resumed - now
        seconds = {"training_seconds": self._training, "validation_seconds": self._validating}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**seconds, "epoch": epoch, "mrr": mrr}) + "\n")


def distinct_queries(triples: np.ndarray, num_relations: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return distinct queries [u, 2] of triples [n, 3] in both directions, the start of the answers of each, [u + 1],
    and the answers, [2n]."""
    heads, relations, tails = triples.astype(np.int64).T
    queries = np.concatenate([np.stack([heads, relations], 1), np.stack([tails, relations + num_relations], 1)])
    unique, row = np.unique(queries, axis=0, return_inverse=True)
    order = np.argsort(row, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(unique)))])
    return unique, starts, np.concatenate([tails, heads])[order]
