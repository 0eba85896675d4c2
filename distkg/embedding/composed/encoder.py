"""Encoder of entity tokens: the sum of their vectors, alone or with a network of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distkg.config import NodePieceConfig
from distkg.embedding.composed.tokens import Vocabulary
from distkg.embedding.scorers import Scorer
from distkg.randomness import Purpose, stream


class TokenEncoder(nn.Module):
    """Entity rows from tokens: e = s = Σ v_i / √n over an entity's n tokens, or e = s + MLP(s) with ``encoder: mlp``.

    NodePiece joins token vectors and applies an MLP (arXiv 2106.12144, section 3.2). Here it reads their sum, so its
    size does not depend on the number of tokens, and its last layer starts at 0: rows start with the scale that the
    scorer gives to stored ones, and settings of a scorer hold for both.
    """

    def __init__(self, settings: NodePieceConfig, vocabulary: Vocabulary, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(vocabulary.size, width))
        self.network: nn.Module | None = None
        if settings.encoder == "mlp":
            self.network = nn.Sequential(
                nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, 2 * width), nn.ReLU(),
                nn.Linear(2 * width, width),
            )  # fmt: skip

    def initialise(self, scorer: Scorer, seed: int) -> None:
        """Set the first values: token vectors as the scorer's entity rows."""
        with torch.no_grad():
            scorer.init_entities(self.vectors, stream(Purpose.ENTITIES, seed))
        if self.network is not None:
            _, first, _, last = self.network.children()
            nn.init.xavier_uniform_(first.weight, generator=stream(Purpose.NETWORK, seed, 1))  # type: ignore[arg-type]
            for parameter in (first.bias, *last.parameters()):
                nn.init.zeros_(parameter)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return rows float32 [n, width] from tokens int32 [n, K], -1 where there is none."""
        present = (tokens >= 0).float()
        weights = present * present.sum(1, keepdim=True).clamp_min(1).rsqrt()
        pooled = F.embedding_bag(tokens.clamp_min(0), self.vectors, mode="sum", per_sample_weights=weights)
        return pooled if self.network is None else pooled + self.network(pooled)
