"""Pairs that follow from pairs by logical rules: joins, closures, intersections.

Pairs are int64 [n, 2], head and tail, without loops and without repetitions, in the order of their keys.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distkg.data.rules.shapes import Ints
from distkg.graph.csr import expanded_ranges

LONGEST_CHAIN = 12  # steps of a transitive closure; chains of this many facts are the longest that shapes draw


def keys_of(pairs: Ints, entities: int) -> Ints:
    """Return one number for each pair: int64 [n]."""
    return pairs[:, 0] * entities + pairs[:, 1]


def distinct(pairs: Ints, entities: int) -> Ints:
    """Return the distinct pairs whose ends differ, sorted."""
    keys = np.unique(keys_of(pairs[pairs[:, 0] != pairs[:, 1]], entities))
    return np.stack([keys // entities, keys % entities], 1)


def is_among(pairs: Ints, others: Ints, entities: int) -> NDArray[np.bool_]:
    """Return whether each pair is one of the others: bool [n]."""
    return np.isin(keys_of(pairs, entities), keys_of(others, entities))


def joined(left: Ints, right: Ints, entities: int, most: int, rng: np.random.Generator) -> Ints:
    """Return the pairs (x, z) with left(x, y) and right(y, z), x ≠ z.

    If there are more than ``most`` ways, they are found for some entities x only, and for these completely.
    """
    right = right[np.argsort(right[:, 0], kind="stable")]
    starts, ends = (np.searchsorted(right[:, 0], left[:, 1], side) for side in ("left", "right"))
    left, starts, ends = _some_heads((left, starts, ends), entities, most, rng)
    row, place = expanded_ranges(starts, ends)
    return distinct(np.stack([left[row, 0], right[place, 1]], 1), entities)


def some_of_heads(pairs: Ints, entities: int, most: int, rng: np.random.Generator) -> Ints:
    """Return all pairs of as many random heads as have ``most`` pairs or fewer together, but of one at least."""
    return _some_heads((pairs, np.zeros_like(pairs[:, 0]), np.ones_like(pairs[:, 0])), entities, most, rng)[0]


def _some_heads(
    ways: tuple[Ints, Ints, Ints], entities: int, most: int, rng: np.random.Generator
) -> tuple[Ints, Ints, Ints]:
    """Return the left pairs, with their ranges of right pairs, of as many random heads as have ``most`` ways or fewer
    together, but of one at least."""
    left, starts, ends = ways
    counts = np.bincount(left[:, 0], weights=ends - starts, minlength=entities)
    if counts.sum() <= most:
        return ways
    order = rng.permutation(np.flatnonzero(counts))
    chosen = np.zeros(entities, dtype=bool)
    chosen[order[: max(1, int(np.searchsorted(np.cumsum(counts[order]), most, "right")))]] = True
    kept = chosen[left[:, 0]]
    return left[kept], starts[kept], ends[kept]


def closure(pairs: Ints, entities: int, most: int, rng: np.random.Generator) -> Ints:
    """Return the pairs (x, z) with a way of two or more pairs from x to z, by ways of up to ``LONGEST_CHAIN``.

    There are at most about ``most``; where there are more, long ways are left out.
    """
    reached = further = pairs
    for _ in range(LONGEST_CHAIN - 1):
        further = joined(further, pairs, entities, most, rng)
        further = further[~is_among(further, reached, entities)]
        if not len(further) or len(reached) > len(pairs) + most:
            break
        reached = np.concatenate([reached, further])
    return distinct(reached[len(pairs) :], entities)
