"""R-GCN: graph convolutions with a matrix for each relation, composed of few basis matrices (Schlichtkrull et al. 2018,
arXiv 1703.06103)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distkg.foundation.base import MODELS, ModelOptions
from distkg.foundation.layers.gcn import GcnOptions, GraphConvolutionModel, mean_weight, vectors
from distkg.foundation.layers.relational import Layers
from distkg.kernels.message_passing.edges import Edges
from distkg.kernels.message_passing.sums import propagate


class BasisConvolution(nn.Module):
    """R-GCN layer: x[u] becomes W₀ x[u] + mean over edges (u, r, v) of W_r x[v], with W_r = Σ_b c[r, b] V_b."""

    def __init__(self, width: int, kinds: int, bases: int) -> None:
        super().__init__()
        self.coefficients = vectors(kinds, bases)
        self.bases = nn.Parameter(torch.stack([vectors(width, width) for _ in range(bases)]))
        self.loop = nn.Linear(width, width)

    def forward(self, states: Tensor, edges: Edges, weight: Tensor) -> Tensor:
        """Return states float32 [N, d] of states [N, d]; ``weight`` is float32 [E]."""
        count, width = self.bases.shape[:2]
        # The bases take the batch dimension of propagate; their coefficients scale whole rows.
        scales = self.coefficients.T[..., None].expand(-1, -1, width)
        gathered = propagate(states.expand(count, -1, -1), scales, edges, weight)
        updated: Tensor = self.loop(states) + torch.einsum("bnd,bde->ne", gathered, self.bases)
        return updated


class RgcnOptions(GcnOptions):
    bases: int = Field(
        4, ge=1, description="Number of basis matrices from which the matrices of all relations are composed."
    )


@MODELS.register("rgcn")
class Rgcn(GraphConvolutionModel):
    """Relational graph convolutions with basis decomposition, with the mean over all facts of an entity, and a
    decoder."""

    Options = RgcnOptions
    name = "rgcn"

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        assert isinstance(options, RgcnOptions)
        kinds = 2 * options.relations
        self.relation = vectors(kinds, options.width)
        self.layers = Layers[BasisConvolution](
            BasisConvolution(options.width, kinds, options.bases) for _ in range(options.layers)
        )

    def relations(self) -> Tensor:
        return self.relation

    def encoded(self, facts: Edges, weight: Tensor | None) -> Tensor:
        states: Tensor = self.entity
        for number, layer in enumerate(self.layers):
            states = layer(states if number == 0 else F.relu(states), facts, mean_weight(facts, weight, number))
        return states
