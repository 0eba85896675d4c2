"""DistMult (Yang et al. 2015, arXiv 1412.6575): score = Σ_i h_i r_i t_i."""

from torch import Tensor, nn

from distkg.scoring.base import SCORERS, Scorer


@SCORERS.register("distmult")
class DistMult(Scorer):
    """Symmetric in its entities, so r⁻¹ = r where tied."""

    tied_inverse = True

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        return anchor * relation

    def inverse(self, relation: Tensor) -> Tensor:
        return relation

    def init_entities(self, rows, generator) -> None:  # type: ignore[no-untyped-def]
        nn.init.xavier_uniform_(rows, generator=generator)
