"""Random streams as a function of (seed, purpose, epoch, step, rank).

No random state is carried from step to step, so a resumed run continues exactly like an uninterrupted one, without
random state in its checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distkg.hashing import GAMMA, MULTIPLIERS, splitmix64

_MASK = (1 << 64) - 1


class Purpose(IntEnum):
    """Purpose of a random stream; streams of different purposes are independent."""

    ENTITIES = 1
    RELATIONS = 2
    NETWORK = 3
    ORDER = 4
    NEGATIVES = 5
    DROPOUT = 6
    VALIDATION = 7
    GRAPH = 8
    GROWTH = 9
    PARTITIONS = 10
    ANCHORS = 11
    GENERATED = 12
    AVERAGE = 13


def mixed_seed(*parts: int) -> int:
    """Mix several integers into a 63-bit seed, with the finaliser of SplitMix64 without its first shift over each."""
    state = GAMMA
    for part in parts:
        state = (state ^ (part & _MASK)) * MULTIPLIERS[0] & _MASK
        state = (state ^ (state >> 27)) * MULTIPLIERS[1] & _MASK
        state ^= state >> 31
    return state >> 1


def stream(purpose: Purpose, *parts: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Create a generator for a purpose and seed, epoch, step, rank …"""
    return torch.Generator(device=device).manual_seed(mixed_seed(purpose, *parts))


class RandomNumbers(Protocol):
    """Stream of random numbers; each call takes the next ones."""

    def integers(self, high: int, shape: Sequence[int]) -> Tensor:
        """Return integers in [0, high): int64 of a shape."""
        ...

    def floats(self, shape: Sequence[int]) -> Tensor:
        """Return numbers in [0, 1): float32 of a shape."""
        ...

    def fraction(self) -> float:
        """Return one number in [0, 1), known to the host at once."""
        ...


class GeneratorNumbers:
    """Random numbers of torch's CPU generator, the Mersenne Twister, on CPU."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def integers(self, high: int, shape: Sequence[int]) -> Tensor:
        return torch.randint(high, tuple(shape), generator=self._generator)

    def floats(self, shape: Sequence[int]) -> Tensor:
        return torch.rand(tuple(shape), generator=self._generator)

    def fraction(self) -> float:
        return float(torch.rand(1, generator=self._generator, dtype=torch.float64))


class CounterNumbers:
    """Random numbers as a function of seed and position, the same on every device: outputs of SplitMix64.

    The Mersenne Twister computes 624 words from the 624 before them, so a device could not compute them side by side.
    int64 stands for uint64: additions and products wrap, and shifts are masked.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        """Start the stream of a seed; its numbers are tensors on ``device``."""
        self._seed, self._device, self._taken = seed, device, 0

    def integers(self, high: int, shape: Sequence[int]) -> Tensor:
        """Return integers in [0, high): the upper 63 bits modulo ``high``, with a bias below high / 2⁶³."""
        return (_shifted(self._words(math.prod(shape)), 1) % high).view(*shape)

    def floats(self, shape: Sequence[int]) -> Tensor:
        """Return numbers in [0, 1): the upper 24 bits."""
        return (_shifted(self._words(math.prod(shape)), 40).float() * 2.0**-24).view(*shape)

    def fraction(self) -> float:
        """Return a number in [0, 1): the upper 53 bits."""
        self._taken += 1
        state = np.array([self._seed + self._taken * GAMMA & _MASK], np.uint64)
        return int(splitmix64(state)[0] >> np.uint64(11)) * 2.0**-53

    def _words(self, count: int) -> Tensor:
        place = torch.arange(1, count + 1, device=self._device)
        state = place * _signed(GAMMA) + _signed(self._seed + self._taken * GAMMA)
        self._taken += count
        for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
            state = (state ^ _shifted(state, shift)) * _signed(multiplier)
        return state ^ _shifted(state, 31)


def _signed(word: int) -> int:
    """Return the int64 with the lowest 64 bits of an integer."""
    word &= _MASK
    return word - (1 << 64) if word >> 63 else word


def _shifted(words: Tensor, by: int) -> Tensor:
    """Shift the 64 bits of int64 to the right, with zeros from the left."""
    return (words >> by) & ((1 << (64 - by)) - 1)


def seed_dropout(device: torch.device, seed: int) -> None:
    """Seed the generator of torch's dropout on this device, and no other device's generator.

    ``torch.manual_seed`` would record a call and its stack for every unused kind of device: half a millisecond, and
    memory that grows with every step.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    elif device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.manual_seed(seed)
