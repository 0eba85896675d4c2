"""ComplEx (Trouillon et al. 2016, arXiv 1606.06357, eq. 9): score = Re Σ_i h_i r_i t̄_i over complex numbers.

Vectors start at 10⁻³ times a standard normal, as in the reference settings of Lacroix et al. 2018 (N3).
"""

from __future__ import annotations

from torch import Tensor

from distkg.embedding.scorers.algebra import conjugate
from distkg.embedding.scorers.base import SCORERS, Options, Scorer, require_multiple
from distkg.kernels.compositions import COMPLEX_PRODUCT, complex_product


@SCORERS.register("complex")
class ComplEx(Scorer):
    """Rows [real half | imaginary half]; a tied r⁻¹ is the conjugate of r."""

    tied_inverse = True
    bilinear = True
    number_parts = 2
    composition = COMPLEX_PRODUCT

    def __init__(self, dim: int, options: Options) -> None:
        require_multiple(dim, 2, "complex")
        super().__init__(dim, options)

    def relation_queries(self, anchor: Tensor, answer: Tensor) -> Tensor:
        return complex_product(conjugate(anchor), answer)

    def inverse(self, relation: Tensor) -> Tensor:
        return conjugate(relation)
