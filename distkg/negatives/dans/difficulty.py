"""How hard an entity is to learn: ζ in (0, 1), from its place in the graph and its vector (DANS-KGC, equation 1).

The paper does not say what ζ learns from; through the loss of the diffusion alone it would rise to 1 everywhere, as
more noise is easier to predict. Here it learns what can be seen: the rank of an entity's loss as an answer among all,
averaged over the training so far.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEMORY = 0.9  # of an entity's mean loss, at each look at it


class Difficulty(nn.Module):
    """ζ of all entities.

    Attributes:
        seen: float32 [n], mean loss of each entity as an answer so far; NaN where it was none.
    """

    def __init__(self, structure: Tensor, semantic: int, hidden: int = 64) -> None:
        """``structure`` float32 [n, s] are standardised features; vectors have ``semantic`` numbers."""
        super().__init__()
        self.structure: Tensor
        self.seen: Tensor
        self.register_buffer("structure", structure)
        self.register_buffer("seen", torch.full((len(structure),), torch.nan))
        self.network = nn.Sequential(
            nn.Linear(structure.shape[1] + semantic, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Flatten(0)
        )

    def forward(self, entities: Tensor, vectors: Tensor) -> Tensor:
        """ζ float32 [b] of entities int64 [b] with vectors float32 [b, C]."""
        features = torch.cat([F.normalize(vectors, dim=1), self.structure[entities]], dim=1)
        found: Tensor = torch.sigmoid(self.network(features))
        return found

    def look(self, entities: Tensor, losses: Tensor) -> None:
        """Take note of the losses float32 [b] of triples whose answers are ``entities`` int64 [b]."""
        unique, place = torch.unique(entities, return_inverse=True)
        mean = torch.zeros(len(unique), device=losses.device).index_add_(0, place, losses)
        mean /= torch.bincount(place, minlength=len(unique))
        before = self.seen[unique]
        self.seen[unique] = torch.where(before.isnan(), mean, MEMORY * before + (1 - MEMORY) * mean)

    def target(self, entities: Tensor) -> Tensor:
        """Share of the entities seen whose mean loss is lower: float32 [b] in [0, 1]."""
        in_order = self.seen[~self.seen.isnan()].sort().values
        below = torch.searchsorted(in_order, self.seen[entities].contiguous())
        return below / max(len(in_order) - 1, 1)

    def loss(self, entities: Tensor, vectors: Tensor) -> Tensor:
        """Mean squared distance from the target, of entities that were looked at; scalar."""
        return F.mse_loss(self(entities, vectors), self.target(entities).clamp_max(1))
