"""Learning difficulty of an entity: ζ in (0, 1), from graph structure and its vector (DANS-KGC, equation 1).

The paper does not say what ζ learns from. Trained by the diffusion loss alone, it would rise to 1 everywhere, because
more noise is easier to predict. Here its target is observable: the rank of an entity's loss as an answer among all
entities, averaged over the training so far.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEMORY = 0.9  # decay of the moving average of an entity's loss


class Difficulty(nn.Module):
    """Difficulty ζ of all entities.

    Attributes:
        seen: float32 [n], mean loss of each entity as an answer so far; NaN for entities without observations.
    """

    def __init__(self, structure: Tensor, semantic: int, hidden: int = 64) -> None:
        """Create the network.

        Args:
            structure: float32 [n, s], standardised structural features.
            semantic: dimension of entity vectors.
        """
        super().__init__()
        self.structure: Tensor
        self.seen: Tensor
        self.register_buffer("structure", structure)
        self.register_buffer("seen", torch.full((len(structure),), torch.nan))
        self.network = nn.Sequential(
            nn.Linear(structure.shape[1] + semantic, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Flatten(0)
        )

    def forward(self, entities: Tensor, vectors: Tensor) -> Tensor:
        """Return ζ float32 [b] of entities int64 [b] with vectors float32 [b, C]."""
        features = torch.cat([F.normalize(vectors, dim=1), self.structure[entities]], dim=1)
        difficulty: Tensor = torch.sigmoid(self.network(features))
        return difficulty

    def look(self, entities: Tensor, losses: Tensor) -> None:
        """Record the losses float32 [b] of triples whose answers are ``entities`` int64 [b]."""
        unique, place = torch.unique(entities, return_inverse=True)
        mean = torch.zeros(len(unique), device=losses.device).index_add_(0, place, losses)
        mean /= torch.bincount(place, minlength=len(unique))
        before = self.seen[unique]
        self.seen[unique] = torch.where(before.isnan(), mean, MEMORY * before + (1 - MEMORY) * mean)

    def target(self, entities: Tensor) -> Tensor:
        """Return the share of observed entities with a lower mean loss: float32 [b] in [0, 1]."""
        in_order = self.seen[~self.seen.isnan()].sort().values
        below = torch.searchsorted(in_order, self.seen[entities].contiguous())
        return below / max(len(in_order) - 1, 1)

    def loss(self, entities: Tensor, vectors: Tensor) -> Tensor:
        """Return the mean squared error of the difficulty of observed entities against their target; scalar."""
        return F.mse_loss(self(entities, vectors), self.target(entities).clamp_max(1))
