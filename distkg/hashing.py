"""SplitMix64 (Steele, Lea, Flood 2014); hashes and derived seeds use its finaliser."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Words = TypeVar("Words", np.uint64, NDArray[np.uint64])

GAMMA = 0x9E3779B97F4A7C15  # difference of consecutive states of the generator, mod 2**64
MULTIPLIERS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

_FIRST, _SECOND = (np.uint64(multiplier) for multiplier in MULTIPLIERS)


def splitmix64(state: Words) -> Words:
    """Return the output of SplitMix64 for each state: uint64 from uint64, one to one.

    The outputs of a seed are those of the states seed + GAMMA, seed + 2 GAMMA, … It takes arrays with NumPy, and can be
    compiled for single numbers.
    """
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
