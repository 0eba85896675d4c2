"""Which tokens stand for an entity: the ones it has most often."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NONE = -1


def most_frequent(entity: np.ndarray, token: np.ndarray, entities: int, most: int) -> NDArray[np.int32]:
    """The ``most`` most frequent tokens of each entity: int32 [entities, most], ascending, filled up with -1.

    As MyGO chooses them (Zhang et al. 2025): counted over all images, or all text, of an entity; of tokens that are
    equally frequent, those with smaller ids.

    Args:
        entity, token: integer [m], one entry for each occurrence; tokens from 0 on.

    >>> most_frequent([0, 0, 0, 0, 2, 2], [7, 9, 9, 8, 5, 4], entities=3, most=2).tolist()
    [[7, 9], [-1, -1], [4, 5]]
    """
    entity, token = np.asarray(entity, np.int64), np.asarray(token, np.int64)
    chosen = np.full((entities, most), NONE, np.int32)
    if not len(token):
        return chosen
    size = int(token.max()) + 1
    pairs, count = np.unique(entity * size + token, return_counts=True)
    owner = pairs // size
    order = np.lexsort((pairs, -count, owner))
    place = np.arange(len(order)) - np.searchsorted(owner, owner)  # among those of the entity; owners are in order
    kept = np.sort(pairs[order[place < most]])
    owner = kept // size
    chosen[owner, np.arange(len(kept)) - np.searchsorted(owner, owner)] = kept % size
    return chosen
