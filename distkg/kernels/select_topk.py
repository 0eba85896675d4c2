"""Running top-k selection over blocks of scores.

Order: higher score first, among equal scores the lower entity id. The order is total, so the result does not depend on
the blocks of queries and entities. The compiled kernel and the plain torch form give the same result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distkg.kernels.jit import kernel, on_cpu

_NOBODY = torch.iinfo(torch.int64).min
_ID_BITS = 32
_LAST_ID = (1 << 31) - 1


@dataclass(frozen=True)
class Best:
    """Top-k entities so far, in order.

    Attributes:
        scores: float32 [q, k], padded with -inf.
        entities: int32 [q, k], padded with -1.
    """

    scores: Tensor
    entities: Tensor

    @classmethod
    def none_yet(cls, queries: int, top: int, device: torch.device) -> Best:
        return cls(
            torch.full((queries, top), -torch.inf, device=device),
            torch.full((queries, top), -1, dtype=torch.int32, device=device),
        )


def keep_best(scores: Tensor, low: int, first: int, best: Best) -> None:
    """Update ``best`` with one block of scores; scores of -inf or NaN are ignored.

    Args:
        scores: float32 [b, n] of queries ``first … first + b - 1`` and entities ``low … low + n - 1``. Blocks of
            a query come in ascending order of entities.
        low: entity of the first column.
        first: query of the first row.
        best: changed in place.
    """
    if not on_cpu(scores, best.scores):
        reference_keep_best(scores, low, first, best)
        return
    rows = slice(first, first + scores.shape[0])
    _keep(scores.numpy(), low, best.scores[rows].numpy(), best.entities[rows].numpy())


@kernel
def _keep(scores: np.ndarray, low: int, best_scores: np.ndarray, best_entities: np.ndarray) -> None:
    last = best_scores.shape[1] - 1
    for i in range(scores.shape[0]):
        best_row, entities = best_scores[i], best_entities[i]
        for c in range(scores.shape[1]):
            score = scores[i, c]
            if score > best_row[last]:
                place = last
                while place > 0 and score > best_row[place - 1]:
                    best_row[place] = best_row[place - 1]
                    entities[place] = entities[place - 1]
                    place -= 1
                best_row[place] = score
                entities[place] = low + c


def reference_keep_best(scores: Tensor, low: int, first: int, best: Best) -> None:
    """Plain torch form of ``keep_best``, for any device."""
    rows = slice(first, first + scores.shape[0])
    ids = torch.arange(low, low + scores.shape[1], dtype=torch.int32, device=scores.device)
    scores = torch.cat([best.scores[rows], scores.nan_to_num(-torch.inf, torch.inf, -torch.inf)], 1)
    entities = torch.cat([best.entities[rows], ids.expand(scores.shape[0], -1)], 1)
    merged = best_of(scores, entities, best.scores.shape[1])
    best.scores[rows], best.entities[rows] = merged.scores, merged.entities


def best_of(scores: Tensor, entities: Tensor, top: int) -> Best:
    """Select the ``top`` best of scores float32 [q, n] and their entities int32 [q, n], without scores of -inf."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    ordered = _flip(bits).long()
    keys = (ordered << _ID_BITS) + (_LAST_ID - entities.long())
    keys = keys.masked_fill_(scores == -torch.inf, _NOBODY).topk(top, dim=1).values
    is_valid = keys != _NOBODY
    best_scores = _flip((keys >> _ID_BITS).int()).view(torch.float32)
    ids = _LAST_ID - keys.bitwise_and((1 << _ID_BITS) - 1)
    return Best(best_scores.masked_fill(~is_valid, -torch.inf), torch.where(is_valid, ids, -1).to(torch.int32))


def _flip(bits: Tensor) -> Tensor:
    """Map bit patterns of floats to integers that sort like the floats, and back."""
    return torch.where(bits < 0, bits ^ _LAST_ID, bits)
