"""Exact mask of negatives that are known facts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distkg.data.store.known_answers import KnownAnswers
from distkg.graph.csr import row_of_each
from distkg.graph.directions import query_keys
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


class FactKeys:
    """Known answers as sorted keys on a device, where they mask negatives without a wait for the host.

    A fact has the key row · N + answer, where ``row`` numbers the queries with known answers: anchor · 2R + relation in
    its place would exceed 64 bits for graphs such as Freebase.
    """

    def __init__(self, known: KnownAnswers, entities: int, device: torch.device) -> None:
        """Copy the known answers of a graph with ``entities`` entities to a device: 8 bytes for each query and fact."""
        row = row_of_each(known.offsets)
        self._entities, self._relations = entities, known.num_relations
        self._queries = torch.from_numpy(known.keys).to(device)
        self._facts = torch.from_numpy(row * entities + known.answers).to(device)

    def mask(self, anchor: Tensor, relation: Tensor, negatives: Tensor, per_row: int) -> Tensor:
        """Return the mask of negatives that answer their query, as `known_facts` does, on the device."""
        own = negatives.repeat_interleave(per_row, 0)[: len(anchor)]
        if not len(self._facts):
            return torch.zeros_like(own, dtype=torch.bool)
        row, known = _find(self._queries, query_keys(anchor, relation, self._relations))
        return _find(self._facts, row[:, None] * self._entities + own)[1] & known[:, None]


def _find(keys: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Locate keys in sorted keys: positions, and a mask of those present."""
    places = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return places, keys[places] == wanted


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
