"""Scores of queries against the entities of this rank, block by block within a memory budget; used by ranking and
prediction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from distkg.embedding.model import Model

CACHED_ROWS = 1024  # rows of a block on CPU: its scores of 256 queries stay in a 1 MiB cache
_LEAST_ROWS = 16


class ScoreError(ValueError):
    """Error of scores that are NaN or infinite; the message names the query."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Disable gradients and set evaluation mode (no dropout, running statistics of batch norm); the mode is restored
    afterwards."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def query_vectors(model: Model, queries: np.ndarray, batch_size: int) -> Tensor:
    """Return vectors of queries int [m, 2], each computed on one rank and shared: float32 [m, Q]. Collective."""
    ranks = model.ranks
    part = -(-len(queries) // ranks.size)
    mine = np.resize(queries, (part * ranks.size, 2))[ranks.rank * part : (ranks.rank + 1) * part]
    anchor, relation = torch.from_numpy(mine.astype(np.int64)).to(ranks.device).unbind(1)
    rows = model.entities.gather(anchor.contiguous())
    vectors = torch.cat(
        [
            model.query(rows[low : low + batch_size], relation[low : low + batch_size]).float()
            for low in range(0, part, batch_size)
        ]
    )
    return ranks.all_gather(vectors)[: len(queries)]


class Blocks:
    """Partition of queries × this rank's entities into blocks of scores that fit a memory budget."""

    def __init__(self, model: Model, batch_size: int, memory: int) -> None:
        self.model = model
        self.low, self.high = model.entities.shards.range(model.ranks.rank)
        scores = max(memory // 8, 4 * _LEAST_ROWS)
        self.batch_size = max(1, min(batch_size, scores // _LEAST_ROWS))
        fitting = max(_LEAST_ROWS, scores // self.batch_size)
        self.rows = min(fitting, CACHED_ROWS) if model.ranks.device.type == "cpu" else fitting
        # Query vectors have up to two entity widths, and are held twice while ranks exchange them.
        self.round_size = max(self.batch_size, memory // (32 * model.entities.width))

    def candidates(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the first entity and the candidate vectors float32 [n, C] of each block of this rank's rows."""
        for low in range(self.low, self.high, self.rows):
            rows = self.model.entities.rows(low, min(low + self.rows, self.high))
            yield low, self.model.scorer.candidates(rows.float())

    def of_answers(self, answers: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """Return the positions int64 [k] of the answers [a] that this rank owns, and their candidate vectors [k, C]."""
        mine = np.flatnonzero((answers >= self.low) & (answers < self.high))
        rows = self.model.entities.take(torch.from_numpy(answers[mine].astype(np.int64)))
        return mine, self.model.scorer.candidates(rows.float())


def refuse_broken(queries: np.ndarray, broken: np.ndarray, num_relations: int) -> None:
    """Raise if scores of queries [q, 2] are not finite; ``broken`` int64 [q] counts such scores, summed over ranks.

    Raises:
        ScoreError: names the first such query.
    """
    if not broken.any():
        return
    anchor, relation = queries[int(np.argmax(broken > 0))]
    relation_text = (
        f"relation {relation}" if relation < num_relations else f"inverse of relation {relation - num_relations}"
    )
    raise ScoreError(
        f"{int(broken.sum())} scores are NaN or infinite, first those of the query (anchor entity {anchor}, "
        f"{relation_text}). The vectors have diverged: use an earlier checkpoint, or train with a lower learning rate "
        "or a stronger regularizer."
    )
