"""Squared distance in Poincaré balls with the query's curvature, for whole blocks with one matrix product.

A vector v represents the point exp₀(v) = tanh(ρ) v/ρ, ρ = √c|v|, of the ball of curvature −c. For two points with ρ and
σ and the angle θ between their vectors, the distance d_c = 2/√c · artanh(√c|(−p) ⊕ x|) satisfies

    sinh²(√c d_c / 2) = sinh²ρ + sinh²σ + 2 sinh²ρ sinh²σ − 2 (sinh ρ cosh ρ)(sinh σ cosh σ) cos θ,

which is a function of q·v, |q|², |v|² and c. It is smooth for equal points, and has no 1 − |·|² near the boundary.

``RADIUS`` bounds ρ: points stay in the ball shrunk by ``MARGIN``. A vector outside is replaced by its projection, so
its gradient has no radial component. Inner products in float32 have a relative error of about 10⁻⁷, amplified by
sinh² 2ρ near the boundary: at ``RADIUS``, points with √c d_c / 2 below about 0.05 cannot be distinguished.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.kernels.gather_scatter import take_rows
from distkg.kernels.given_gradient import with_gradient
from distkg.kernels.products import product
from distkg.kernels.scores.similarity import Similarity, indexed_products, squared_norms

MARGIN = 4e-3  # value in the reference settings of Chami et al. 2020 for float32
RADIUS = math.atanh(1 - MARGIN)
SMALLEST_CURVATURE = 1e-4

TINY = 1e-30  # keeps the derivative of a square root at 0 finite


def curvature(raw: Tensor) -> Tensor:
    """Return c = softplus(raw), at least ``SMALLEST_CURVATURE``; the curvature is −c. Any shape."""
    return F.softplus(raw).clamp_min(SMALLEST_CURVATURE)


class HyperbolicSimilarity(Similarity):
    """Similarity −d_c(exp₀ q, exp₀ v)² + b_q + b_v (Chami et al. 2020, arXiv 2005.00545).

    Queries are [vector D | bias b_q | raw curvature], candidates [vector D | bias b_v], with c = ``curvature(raw)``;
    without biases the bias columns are absent. Q = C + 1.
    """

    name = "hyperbolic"

    def __init__(self, *, bias: bool) -> None:
        self.bias = bias

    def pairs(self, query: Tensor, candidate: Tensor) -> Tensor:
        q, raw, query_bias = self._query_parts(query)
        v, bias = self._candidate_parts(candidate)
        norms = q.square().sum(-1, keepdim=True), v.square().sum(-1, keepdim=True)
        return (query_bias + bias - _squared_distance((q * v).sum(-1, keepdim=True), *norms, raw)).squeeze(-1)

    def scores(self, query: Tensor, candidates: Tensor) -> Tensor:
        q, raw, query_bias = self._query_parts(query)
        v, bias = self._candidate_parts(candidates)
        distance = _squared_distance(product(q, v), squared_norms(q)[:, None], squared_norms(v), raw)
        return (query_bias + bias.T).sub(distance)

    def gradients(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        q, raw, _ = self._query_parts(query)
        v, _ = self._candidate_parts(candidates)
        parts = product(q, v), squared_norms(q)[:, None], squared_norms(v), raw.detach()
        with torch.enable_grad():
            leaves = [part.requires_grad_() for part in parts]
            distance = _squared_distance(*leaves)
        to_inner, to_query, to_candidates, to_raw = torch.autograd.grad(with_gradient(distance, -grad), leaves)
        grad_query = [product(to_inner, v.T).addcmul_(q, to_query, value=2)]
        grad_candidates = [product(to_inner.T, q.T).addcmul_(v, to_candidates[:, None], value=2)]
        if self.bias:
            grad_query.append(grad.sum(1, keepdim=True))
            grad_candidates.append(grad.sum(0)[:, None])
        return torch.cat([*grad_query, to_raw], 1), torch.cat(grad_candidates, 1)

    def indexed(self, query: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        q, raw, query_bias = self._query_parts(query)
        v, bias = self._candidate_parts(rows)
        scalars = torch.cat((v.square().sum(-1, keepdim=True), bias), 1)
        norm, taken_bias = take_rows(scalars, index.flatten()).view(*index.shape, 2).unbind(-1)
        inner = indexed_products(q, v, index)
        distance = _squared_distance(inner, q.square().sum(-1, keepdim=True), norm, raw)
        return query_bias + taken_bias - distance

    def _query_parts(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split queries into vectors [B, D], raw curvatures [B, 1] and biases [B, 1]."""
        rows, raw = query[..., :-1], query[..., -1:]
        vector, bias = self._candidate_parts(rows)
        return vector, raw, bias

    def _candidate_parts(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Split candidates into vectors [N, D] and biases [N, 1]."""
        # A matrix product of slices is a hundred times slower than of copies.
        if self.bias:
            return rows[..., :-1].contiguous(), rows[..., -1:]
        return rows.contiguous(), rows.new_zeros(*rows.shape[:-1], 1)


def _squared_distance(inner: Tensor, query_norm: Tensor, candidate_norm: Tensor, raw: Tensor) -> Tensor:
    """Compute d_c² from inner products and squared norms of tangent vectors, and raw curvatures; shapes broadcast."""
    c = curvature(raw)
    sinh_q, slant_q = _sinh_parts(c * query_norm)
    sinh_v, slant_v = _sinh_parts(c * candidate_norm)
    half = sinh_q + sinh_v + 2 * sinh_q * sinh_v - 2 * c * slant_q * (slant_v * inner)
    return 4 / c * _arsinh_of_root(half.clamp_min(TINY)).square()


def _sinh_parts(squared: Tensor) -> tuple[Tensor, Tensor]:
    """Compute sinh²ρ′ and sinh ρ′ cosh ρ′ / ρ from ρ², where ρ′ = min(ρ, ``RADIUS``)."""
    rho = squared.clamp_min(TINY).sqrt()
    sinh = rho.clamp_max(RADIUS).sinh()
    square = sinh.square()
    return square, sinh * (1 + square).sqrt() / rho


def _arsinh_of_root(x: Tensor) -> Tensor:
    """Compute arsinh √x; torch.asinh is many times slower on CPU."""
    return torch.log1p(x.sqrt() + x / (1 + (1 + x).sqrt()))
