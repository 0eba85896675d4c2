"""SplitMix64: published outputs, and the compiled form beside the one of NumPy."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distkg.compilation import njit
from distkg.hashing import GAMMA, splitmix64

# Reference implementation (Vigna, https://prng.di.unimi.it/splitmix64.c), seed 1234567.
OUTPUTS = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]
STATES = [(1234567 + step * GAMMA) % 2**64 for step in range(1, 6)]

_compiled = njit()(splitmix64)


def test_published_outputs() -> None:
    assert splitmix64(np.array(STATES, np.uint64)).tolist() == OUTPUTS
    assert [int(_compiled(np.uint64(state))) for state in STATES] == OUTPUTS


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_compiled_and_numpy_forms_are_equal(states: list[int]) -> None:
    outputs = splitmix64(np.array(states, np.uint64))
    assert outputs.dtype == np.uint64
    assert outputs.tolist() == [int(_compiled(np.uint64(state))) for state in states]
