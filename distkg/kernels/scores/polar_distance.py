"""Distance of points whose coordinates have a modulus and a phase: that of HAKE (Zhang et al. 2020, arXiv 1911.09419).

The two parts of the distance (section 4.2 there) are

    ‖p − s ∘ m‖₂  and  ‖sin((φ − θ) / 2)‖₁,

m the moduli and θ the phases of a candidate. The second is a bilinear form, as sin(x − y) = sin x cos y − cos x sin y:
no sine is taken of a pair. A weight of a part that is the same for all candidates is a factor of the query's columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distkg.kernels.scores.root_distance import slopes_of_distances
from distkg.kernels.scores.row_order import RowOrder
from distkg.kernels.scores.similarity import PairwiseKernel, PairwiseSimilarity

Parts = tuple[Tensor, Tensor]


class PolarSimilarity(PairwiseSimilarity):
    """Similarity −‖p − s ∘ m‖₂ − Σ_j |q_j + a_j x_j + b_j y_j|.

    Queries are [p | s | q | a | b], candidates [m | x | y], with ``moduli`` columns in each of p, s and m, and P in
    each of the others: Q = 2 moduli + 3 P, C = moduli + 2 P. The first distance is at least ``FLOOR``, and has no slope
    there. Its kernel is ``squares``, and ``kernel`` is that of the sum.
    """

    FLOOR = 1e-6

    def __init__(self, moduli: int) -> None:
        super().__init__("polar", PairwiseKernel.of("affine_l1"))
        self.moduli = moduli
        self.squares = PairwiseKernel.of("scaled_squared")

    def pairs(self, query: Tensor, candidate: Tensor) -> Tensor:
        (radial, angular), (moduli, phases) = self._query_parts(query), self._candidate_parts(candidate)
        squares = -self.squares.reference(radial, moduli)
        return self.kernel.reference(angular, phases) - squares.clamp_min(self.FLOOR**2).sqrt()

    def scores(self, query: Tensor, candidates: Tensor) -> Tensor:
        (radial, angular), (moduli, phases) = self._query_parts(query), self._candidate_parts(candidates)
        return self.kernel.scores(angular, phases).add_(self._rooted(self.squares.scores(radial, moduli)))

    def gradients(self, grad: Tensor, scores: Tensor, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        (radial, angular), (moduli, phases) = self._query_parts(query), self._candidate_parts(candidates)
        slopes = self._slopes(grad, self.squares.scores(radial, moduli))
        radial_gradients = self.squares.gradients(slopes, radial, moduli)
        angular_gradients = self.kernel.gradients(grad, angular, phases)
        both = zip(radial_gradients, angular_gradients, strict=True)
        to_query, to_candidates = (torch.cat(gradients, dim=1) for gradients in both)
        return to_query, to_candidates

    def indexed_scores(self, query: Tensor, rows: Tensor, index: Tensor, order: RowOrder | None = None) -> Tensor:
        (radial, angular), (moduli, phases) = self._query_parts(query), self._candidate_parts(rows)
        distances = self._rooted(self.squares.indexed_scores(radial, moduli, index, order))
        return self.kernel.indexed_scores(angular, phases, index, order).add_(distances)

    def add_indexed_gradients(
        self,
        grad: Tensor,
        scores: Tensor,
        query: Tensor,
        rows: Tensor,
        index: Tensor,
        to_query: Tensor,
        to_rows: Tensor,
        order: RowOrder | None = None,
    ) -> None:
        (radial, angular), (moduli, phases) = self._query_parts(query), self._candidate_parts(rows)
        slopes = self._slopes(grad, self.squares.indexed_scores(radial, moduli, index, order))
        of_squares = self.squares.indexed_gradients(slopes, radial, moduli, index, order)
        of_sums = self.kernel.indexed_gradients(grad, angular, phases, index, order)
        sums = *self._query_parts(to_query), *self._candidate_parts(to_rows)
        for part, gradient in zip(sums, (of_squares[0], of_sums[0], of_squares[1], of_sums[1]), strict=True):
            part += gradient

    def _query_parts(self, query: Tensor) -> Parts:
        """Split queries into [p | s] and [q | a | b]; views."""
        radial, angular = query.tensor_split((2 * self.moduli,), dim=-1)
        return radial, angular

    def _candidate_parts(self, rows: Tensor) -> Parts:
        """Split candidates into m and [x | y]; views."""
        moduli, phases = rows.tensor_split((self.moduli,), dim=-1)
        return moduli, phases

    def _rooted(self, squares: Tensor) -> Tensor:
        """Turn −d² into −d in place."""
        return squares.clamp_max_(-(self.FLOOR**2)).neg_().sqrt_().neg_()

    def _slopes(self, grad: Tensor, squares: Tensor) -> Tensor:
        """Return the gradients of Σ grad·(−d) by −d², which ``squares`` are."""
        return slopes_of_distances(grad, self._rooted(squares), self.FLOOR)[0] / 2
