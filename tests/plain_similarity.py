"""Every similarity written out as its formula, in float64 and with broadcasting, for tests to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from distkg.kernels.similarity import DOT, L1, L2, MODULUS, SCALED_L1, SQUARED_L2, RotLSimilarity, Similarity

Plain = Callable[[Tensor, Tensor], Tensor]

ROTL = RotLSimilarity(alpha=1.5)


def dot(query: Tensor, candidate: Tensor) -> Tensor:
    return (query * candidate).sum(-1)


def squared_l2(query: Tensor, candidate: Tensor) -> Tensor:
    return -((query - candidate) ** 2).sum(-1)


def l2(query: Tensor, candidate: Tensor) -> Tensor:
    return -(-squared_l2(query, candidate)).clamp_min(1e-12).sqrt()


def l1(query: Tensor, candidate: Tensor) -> Tensor:
    return -(query - candidate).abs().sum(-1)


def scaled_l1(query: Tensor, candidate: Tensor) -> Tensor:
    width = candidate.shape[-1]
    return -(query[..., :width] - query[..., width:] * candidate).abs().sum(-1)


def modulus(query: Tensor, candidate: Tensor) -> Tensor:
    half = candidate.shape[-1] // 2
    return -torch.complex(*(query - candidate).split(half, -1)).abs().sum(-1)


def rotl(query: Tensor, candidate: Tensor) -> Tensor:
    x = -1.5 * l2(query, candidate) / (1 - dot(query, candidate)).abs().clamp_min(0.01)
    tangent = math.exp(10) * (10 + 11 * (x - 10))
    return -torch.where(x > 10, tangent, x * torch.exp(x.clamp_max(10)))


PLAIN: list[tuple[Similarity, Plain]] = [
    (DOT, dot),
    (SQUARED_L2, squared_l2),
    (L2, l2),
    (L1, l1),
    (SCALED_L1, scaled_l1),
    (MODULUS, modulus),
    (ROTL, rotl),
]


def query_width(similarity: Similarity, width: int) -> int:
    """Floats of a query that is compared with candidates of ``width`` floats."""
    return 2 * width if similarity is SCALED_L1 else width
