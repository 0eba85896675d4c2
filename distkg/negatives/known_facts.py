"""Exact mask of negatives that are known facts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distkg.data.store.known_answers import KnownAnswers
from distkg.kernels.jit import kernel


def known_facts(known: KnownAnswers, anchor: Tensor, relation: Tensor, negatives: Tensor, per_row: int) -> Tensor:
    """Return the mask of negatives that answer their query.

    Args:
        known: known answers by query.
        anchor: int64 [B] entities.
        relation: int64 [B] in [0, 2R).
        negatives: int64 [rows, K]; queries ``i * per_row … (i + 1) * per_row - 1`` share row i.
        per_row: number of queries that share a row; 1 if each has its own.

    Returns:
        bool [B, K], True where (anchor, relation, negative) is known.
    """
    starts, ends = known.rows(anchor.numpy(), relation.numpy())
    mask = np.zeros((len(anchor), negatives.shape[1]), dtype=np.bool_)
    _mark(starts, ends, known.answers, negatives.numpy(), per_row, mask)
    return torch.from_numpy(mask)


@kernel
def _mark(
    starts: np.ndarray, ends: np.ndarray, answers: np.ndarray, negatives: np.ndarray, per_row: int, found: np.ndarray
) -> None:
    for i in range(starts.shape[0]):
        if starts[i] == ends[i]:
            continue
        own = answers[starts[i] : ends[i]]
        for k in range(negatives.shape[1]):
            candidate = negatives[i // per_row, k]
            place = np.searchsorted(own, candidate)
            found[i, k] = place < own.shape[0] and own[place] == candidate
