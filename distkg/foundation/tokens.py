"""What entities look like and say, as tokens, and what a model makes of them for each query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class EntityTokens:
    """Tokens of one kind (a modality) for the entities of a graph.

    Attributes:
        ids: int64 [N, n], places in the codebook; -1 where an entity has fewer than n.
        codebook: float32 [V, c], frozen vectors of tokens.
    """

    ids: Tensor
    codebook: Tensor

    @property
    def present(self) -> Tensor:
        """Which entities have any: bool [N]."""
        return (self.ids >= 0).any(1)

    def to(self, device: torch.device) -> EntityTokens:
        return EntityTokens(self.ids.to(device), self.codebook.to(device))

    def of(self, entities: Tensor, strangers: int = 0) -> EntityTokens:
        """Those of entities int64 [m], and of so many more that have none: of a part of the graph."""
        none = self.ids.new_full((strangers, self.ids.shape[1]), -1)
        return EntityTokens(torch.cat([self.ids[entities], none]), self.codebook)


Tokens = Mapping[str, EntityTokens]
"""Modality → its tokens; a graph may lack any."""


class TokenPool(nn.Module):
    """A vector of each entity for each query: the mean of its tokens' vectors, weighed by how they answer the query.

    An entity without tokens has a learned vector of its own.
    """

    def __init__(self, codebook_width: int, width: int, query_width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(codebook_width, width)
        self.norm = nn.LayerNorm(width)
        self.asked = nn.Parameter(torch.zeros(width))
        self.query = nn.Linear(query_width, width)
        self.missing = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: EntityTokens, query: Tensor) -> Tensor:
        """float32 [B, N, width] of queries float32 [B, query_width]."""
        values, places, there = self._values(tokens)
        logits = values @ (self.asked + self.query(query)).T / values.shape[1] ** 0.5
        # [N, n, B]: of tokens that are not there, nothing; of entities without any, anything finite.
        found = logits[places].masked_fill(~there[..., None], -torch.inf)
        found = found.masked_fill(~there.any(1)[:, None, None], 0.0).softmax(1)
        pooled = torch.einsum("nkb,nkw->bnw", found, values[places])
        return torch.where(there.any(1)[None, :, None], pooled, self.missing)

    def mean(self, tokens: EntityTokens) -> Tensor:
        """The same for all queries, tokens weighed alike: float32 [N, width]."""
        values, places, there = self._values(tokens)
        count = there.sum(1, keepdim=True)
        total = (values[places] * there[..., None]).sum(1)
        return torch.where(count > 0, total / count.clamp_min(1), self.missing)

    def _values(self, tokens: EntityTokens) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of the tokens that are in use, [V', width]; where each entity's are among them, int64 [N, n]; and
        which of these are there, bool [N, n]."""
        used, places = torch.unique(tokens.ids.clamp_min(0), return_inverse=True)
        values: Tensor = self.norm(self.projection(tokens.codebook[used]))
        return values, places, tokens.ids >= 0
