"""Similarity by squared distances under an activation, for training: score = −h(c ‖q − e‖²), c > 0 for each query.

HaLE (Wang et al. 2022, arXiv 2201.00565, eq. 8). A query is [q | c] of width D + 1, a candidate is e of width D.
Ranking does not need it: h is increasing, so the plain distance gives the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.kernels.gather_scatter import squared_norms, take_rows
from distkg.kernels.products import product
from distkg.kernels.scores.activations import Activation
from distkg.kernels.scores.distance_sums.distance_log_sum_exp import log_sum_exp_of_distances
from distkg.kernels.scores.log_sum_exp import LogSumExp
from distkg.kernels.scores.similarity import Similarity, indexed_products


class ActivatedDistance(Similarity):
    """Similarity −h(c ‖q − e‖²)."""

    def __init__(self, activation: Activation) -> None:
        self.name = f"activated_{type(activation).__name__.lower()}"
        self.activation = activation

    def pairs(self, query: Tensor, candidate: Tensor) -> Tensor:
        vector, scale = query[..., :-1], query[..., -1]
        return -self.activation(scale * (vector - candidate).square().sum(-1))

    def scores(self, query: Tensor, candidates: Tensor) -> Tensor:
        vector, scale = _split(query)
        return -self.activation(_squared_distances(vector, candidates).mul_(scale))

    def gradients(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        vector, scale = _split(query)
        distance = _squared_distances(vector, candidates)  # recomputed, to store one matrix less
        fall = self.activation.slope(distance * scale).mul_(grad)  # −∂/∂(c d²)
        to_scale = -(fall * distance).sum(1, keepdim=True)
        fall *= 2 * scale  # −2 ∂/∂(d²)
        to_vector = product(fall, candidates.T) - fall.sum(1, keepdim=True) * vector
        to_candidates = product(fall.T, vector.T) - fall.sum(0)[:, None] * candidates
        return torch.cat((to_vector, to_scale), dim=1), to_candidates

    def log_sum_exp(self, query: Tensor, candidates: Tensor, *, keep: bool) -> LogSumExp:
        vector, scale = query[:, :-1], query[:, -1]
        compiled = log_sum_exp_of_distances(self.activation, vector, scale, candidates, keep=keep)
        return compiled or super().log_sum_exp(query, candidates, keep=keep)

    def indexed(self, query: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        vector, scale = query[:, :-1].contiguous(), query[:, -1:]
        inner = indexed_products(vector, rows, index)
        norms = take_rows(rows.square().sum(-1, keepdim=True), index.flatten()).view(index.shape)
        distance = (vector.square().sum(-1, keepdim=True) + norms - 2 * inner).clamp_min(0)
        return -self.activation(scale * distance)


def _split(query: Tensor) -> tuple[Tensor, Tensor]:
    return query[:, :-1].contiguous(), query[:, -1:]


def _squared_distances(vector: Tensor, candidates: Tensor) -> Tensor:
    inner = product(vector, candidates)
    norms = squared_norms(vector)[:, None] + squared_norms(candidates)
    return torch.sub(norms, inner, alpha=2, out=inner).clamp_min_(0)
