"""Random streams as a function of (seed, purpose, epoch, step, rank).

Nothing random is carried from step to step, so a run that resumes at a step continues exactly as if it had not
stopped, without random state in its checkpoint.
"""

from __future__ import annotations

from enum import IntEnum

import torch

from distkg.hashing import GAMMA, MULTIPLIERS

_MASK = (1 << 64) - 1


class Purpose(IntEnum):
    """What a stream is for; streams of different purposes are independent."""

    ENTITIES = 1
    RELATIONS = 2
    NETWORK = 3
    ORDER = 4
    NEGATIVES = 5
    DROPOUT = 6
    VALIDATION = 7
    GRAPH = 8


def mixed_seed(*parts: int) -> int:
    """Return one 63-bit seed from several integers (the finaliser of SplitMix64 without its first shift, over each)."""
    state = GAMMA
    for part in parts:
        state = (state ^ (part & _MASK)) * MULTIPLIERS[0] & _MASK
        state = (state ^ (state >> 27)) * MULTIPLIERS[1] & _MASK
        state ^= state >> 31
    return state >> 1


def stream(purpose: Purpose, *parts: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator for this purpose, seed, epoch, step, rank …"""
    return torch.Generator(device=device).manual_seed(mixed_seed(purpose, *parts))


def seed_dropout(device: torch.device, seed: int) -> None:
    """Seed what torch's dropout draws from on this device, and no other device's generator.

    ``torch.manual_seed`` would note down a call and its stack for every kind of device that is not in use: half a
    millisecond, and memory that grows with every step.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    elif device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.manual_seed(seed)
