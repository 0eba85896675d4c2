"""Random streams as a function of (seed, purpose, epoch, step, rank).

No random state is carried from step to step, so a resumed run continues exactly like an uninterrupted one, without
random state in its checkpoint.
"""

from __future__ import annotations

from enum import IntEnum

import torch

from distkg.hashing import GAMMA, MULTIPLIERS

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
