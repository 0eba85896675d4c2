"""Every similarity written out as its formula, in float64 and with broadcasting, for tests to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from distkg.kernels.scores.poincare_distance import HyperbolicSimilarity
from distkg.kernels.scores.polar_distance import PolarSimilarity
from distkg.kernels.scores.similarity import (
    AFFINE_L1,
    DOT,
    L1,
    L2,
    MODULUS,
    SCALED_L1,
    SQUARED_L2,
    RotLSimilarity,
    Similarity,
)

Plain = Callable[[Tensor, Tensor], Tensor]

ROTL = RotLSimilarity(alpha=1.5)
POLAR = PolarSimilarity(moduli=2)
HYPERBOLIC = HyperbolicSimilarity(bias=False)
HYPERBOLIC_BIASED = HyperbolicSimilarity(bias=True)


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


def affine_l1(query: Tensor, candidate: Tensor) -> Tensor:
    half = candidate.shape[-1] // 2
    scaled = query[..., half:] * candidate
    return -(query[..., :half] + scaled[..., :half] + scaled[..., half:]).abs().sum(-1)


def polar(query: Tensor, candidate: Tensor) -> Tensor:
    gap = query[..., :2] - query[..., 2:4] * candidate[..., :2]
    distance = gap.square().sum(-1).clamp_min(1e-12).sqrt()
    return affine_l1(query[..., 4:], candidate[..., 2:]) - distance


def modulus(query: Tensor, candidate: Tensor) -> Tensor:
    half = candidate.shape[-1] // 2
    return -torch.complex(*(query - candidate).split(half, -1)).abs().sum(-1)


def rotl(query: Tensor, candidate: Tensor) -> Tensor:
    x = -1.5 * l2(query, candidate) / (1 - dot(query, candidate)).abs().clamp_min(0.01)
    tangent = math.exp(10) * (10 + 11 * (x - 10))
    return -torch.where(x > 10, tangent, x * torch.exp(x.clamp_max(10)))


def hyperbolic(query: Tensor, candidate: Tensor) -> Tensor:
    c = torch.logaddexp(query[..., -1:], torch.zeros(())).clamp_min(1e-4)  # softplus
    p, x = in_ball(query[..., :-1], c), in_ball(candidate, c)
    pp, xx, px = (p * p).sum(-1, keepdim=True), (x * x).sum(-1, keepdim=True), (p * x).sum(-1, keepdim=True)
    gap = ((1 - c * pp) * x - (1 - 2 * c * px + c * xx) * p) / (1 - 2 * c * px + c * c * pp * xx)  # (-p) ⊕ x
    return -((2 / c.sqrt() * torch.atanh(c.sqrt() * gap.norm(dim=-1, keepdim=True))) ** 2).squeeze(-1)


def in_ball(vector: Tensor, c: Tensor) -> Tensor:
    """exp₀, kept in the ball shrunk by 0.004."""
    rho = c.sqrt() * vector.norm(dim=-1, keepdim=True).clamp_min(1e-100)
    return vector / rho * rho.tanh().clamp_max(0.996)


def hyperbolic_biased(query: Tensor, candidate: Tensor) -> Tensor:
    vectors = torch.cat((query[..., :-2], query[..., -1:]), -1), candidate[..., :-1]
    return hyperbolic(*vectors) + query[..., -2] + candidate[..., -1]


PLAIN: list[tuple[Similarity, Plain]] = [
    (DOT, dot),
    (SQUARED_L2, squared_l2),
    (L2, l2),
    (L1, l1),
    (SCALED_L1, scaled_l1),
    (AFFINE_L1, affine_l1),
    (POLAR, polar),
    (MODULUS, modulus),
    (ROTL, rotl),
    (HYPERBOLIC, hyperbolic),
    (HYPERBOLIC_BIASED, hyperbolic_biased),
]


def query_width(similarity: Similarity, width: int) -> int:
    """Floats of a query that is compared with candidates of ``width`` floats."""
    if isinstance(similarity, HyperbolicSimilarity):
        return width + 1
    if similarity is POLAR:
        return 4 + 3 * (width - 2) // 2
    return {SCALED_L1: 4, AFFINE_L1: 3}.get(similarity, 2) * width // 2
