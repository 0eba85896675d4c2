"""Shapes of relations: how the pairs of a relation without a rule lie between its heads and its tails.

A shape draws pairs of places, int64 [n, 2], heads from [0, heads) and tails from [0, tails). Pairs may repeat, and
there may be fewer than asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
ZIPF_EXPONENT = 0.8


class Ends(NamedTuple):
    """Numbers of possible heads and tails, and the exponent of their power laws, in [0, 1)."""

    heads: int
    tails: int
    skew: float


Shape = Callable[[np.random.Generator, Ends, int], Ints]
"""Function (random generator, ends, number of pairs) → pairs."""


def zipf(rng: np.random.Generator, n: int, size: int, exponent: float = ZIPF_EXPONENT) -> Ints:
    """Sample from [0, n) with probability ∝ rank^-exponent, by inversion of the continuous law: int64 [size].

    Args:
        exponent: in [0, 1).
    """
    power = 1 - exponent
    drawn = (rng.random(size) * ((n + 1.0) ** power - 1) + 1) ** (1 / power)
    return np.minimum(drawn.astype(np.int64) - 1, n - 1)


def skewed(rng: np.random.Generator, ends: Ends, count: int) -> Ints:
    """Draw heads and tails by power laws."""
    return np.stack([zipf(rng, ends.heads, count, ends.skew), zipf(rng, ends.tails, count, ends.skew)], 1)


def functional(rng: np.random.Generator, ends: Ends, count: int) -> Ints:
    """Draw one tail for each of some heads (n-1)."""
    heads = rng.permutation(ends.heads)[:count]
    return np.stack([heads, zipf(rng, ends.tails, len(heads), ends.skew)], 1)


def one_to_one(rng: np.random.Generator, ends: Ends, count: int) -> Ints:
    """Match some heads and tails, each at most once (1-1)."""
    count = min(count, ends.heads, ends.tails)
    return np.stack([rng.permutation(ends.heads)[:count], rng.permutation(ends.tails)[:count]], 1)


def blocks(rng: np.random.Generator, ends: Ends, count: int) -> Ints:
    """Draw pairs within communities, which are ranges of heads and of tails."""
    number = max(2, int(min(ends.heads, ends.tails) ** 0.5) // 2)
    block = rng.integers(number, size=(count, 1))
    return ((block + rng.random((count, 2))) * np.array([ends.heads, ends.tails]) / number).astype(np.int64)


def local(rng: np.random.Generator, ends: Ends, count: int) -> Ints:
    """Draw tails that are near their heads in the order of entities."""
    heads = rng.integers(ends.heads, size=count)
    steps = rng.geometric(0.3, size=count) * rng.choice([-1, 1], count)
    return np.stack([heads, (heads * ends.tails // ends.heads + steps) % ends.tails], 1)


def tree(rng: np.random.Generator, ends: Ends, count: int) -> Ints:
    """Draw a parent among earlier entities for each child: a random recursive tree, flatter with more skew.

    Heads and tails must be the same entities.
    """
    children = np.arange(1, min(count + 1, ends.heads))
    parents = children * rng.random(len(children)) ** (1 + 2 * ends.skew)
    return np.stack([children, parents.astype(np.int64)], 1)


def chains(rng: np.random.Generator, ends: Ends, count: int) -> Ints:
    """Draw successions of up to twelve entities: each leads to the next. Heads and tails must be the same entities."""
    length = int(rng.integers(3, 13))
    firsts = np.arange(min(count * length // (length - 1), ends.heads - 1))
    firsts = firsts[firsts % length != length - 1]
    return np.stack([firsts, firsts + 1], 1)


BETWEEN_KINDS: tuple[Shape, ...] = (skewed, functional, one_to_one, blocks, local)
"""Shapes for heads and tails of any kinds."""

ORDERED: tuple[Shape, ...] = (tree, chains)
"""Shapes without cycles, for heads and tails of one kind."""
