"""Selection of the tokens that represent an entity: its most frequent ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NONE = -1


def most_frequent(entity: np.ndarray, token: np.ndarray, entities: int, most: int) -> NDArray[np.int32]:
    """Select the ``most`` most frequent tokens of each entity: int32 [entities, most], ascending, padded with -1.

    As in MyGO (Zhang et al. 2025), tokens are counted over all images, or all texts, of an entity; ties go to smaller
    ids.

    Args:
        entity, token: integer [m], one entry per occurrence; tokens from 0 on.

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
    place = np.arange(len(order)) - np.searchsorted(owner, owner)  # rank within the entity; owners are sorted
    selected = np.sort(pairs[order[place < most]])
    owner = selected // size
    chosen[owner, np.arange(len(selected)) - np.searchsorted(owner, owner)] = selected % size
    return chosen
