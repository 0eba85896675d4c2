"""Table of entity rows that are composed when they are read."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from distkg.config import ModelConfig
from distkg.data.store.graph_store import Store
from distkg.embedding.composed.encoder import TokenEncoder
from distkg.embedding.composed.tokens import Vocabulary, entity_tokens
from distkg.embedding.scorers import make_scorer
from distkg.kernels.given_gradient import with_gradient
from distkg.sharding.exchange import Route
from distkg.sharding.ranks import Ranks
from distkg.sharding.row_storage import DeviceMemory
from distkg.sharding.shards import Shards
from distkg.sharding.table import ExchangedRows

COMPOSED_ROWS = 1 << 12
"""Rows that are composed together; bounds what is held for their gradients."""


class ComposedTable(nn.Module, ExchangedRows):
    """Table whose rows are a function of tokens and of replicated parameters; each rank composes its own range.

    An update with gradients of rows adds to the gradients of the parameters, which are reduced over ranks after it.

    Attributes:
        tokens: int32 [rows of this rank, K].
        encoder: replicated.
    """

    optimizer = None
    dtype = torch.float32

    def __init__(self, tokens: Tensor, encoder: TokenEncoder, shards: Shards, ranks: Ranks) -> None:
        super().__init__()
        self.shards, self.width, self.ranks = shards, encoder.vectors.shape[1], ranks
        self.storage = DeviceMemory(ranks.device)
        self.tokens = tokens.to(ranks.device)
        self.encoder = encoder.to(ranks.device)

    @property
    def local(self) -> Tensor:
        """Compose all rows of this rank: float32 [rows of this rank, width]."""
        return self.rows(*self.shards.range(self.ranks.rank))

    def rows(self, low: int, high: int) -> Tensor:
        """Compose rows ``low … high - 1`` of this rank: float32 [high - low, width]."""
        return self.take(torch.arange(low, high, device=self.ranks.device))

    def take(self, ids: Tensor) -> Tensor:
        """Compose the rows of ids int64 [k] of this rank: float32 [k, width]."""
        return self.read(ids.to(self.ranks.device) - self.shards.range(self.ranks.rank)[0])

    def read(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        out = torch.empty(len(rows), self.width, device=self.ranks.device) if out is None else out
        with torch.no_grad():
            for low, high in _parts(len(rows)):
                out[low:high] = self.encoder(self.tokens[rows[low:high]])
        return out

    def prefetch(self, route: Route) -> None:
        """Do nothing: tokens are in memory."""

    def update(self, ids: Tensor, gradients: Tensor, learning_rate: float) -> None:
        """Add the gradients of the parameters from those of local rows, unique ids int64 [u] and float32 [u, width].

        On a device, sorted ids may be repeated; the gradients of repetitions are 0.
        """
        for low, high in _parts(len(ids)):
            with torch.enable_grad():
                rows = self.encoder(self.tokens[ids[low:high]])
            with_gradient(rows, gradients[low:high]).backward()

    def update_all(self, gradients: Tensor, learning_rate: float) -> None:
        """Add the gradients of the parameters from those of all local rows."""
        self.update(torch.arange(len(gradients), device=gradients.device), gradients, learning_rate)


def composed_table(config: ModelConfig, store: Store, ranks: Ranks) -> ComposedTable:
    """Make the table of a store's entities; the parameters are not initialised."""
    shards = Shards(store.num_entities, ranks.size)
    vocabulary = Vocabulary.of(config.nodepiece, store.num_entities, store.num_relations)
    with torch.device("meta"):
        width = make_scorer(config).entity_width
    tokens = entity_tokens(store, config.nodepiece, *shards.range(ranks.rank))
    return ComposedTable(tokens, TokenEncoder(config.nodepiece, vocabulary, width), shards, ranks)


def _parts(rows: int) -> Iterator[tuple[int, int]]:
    for low in range(0, rows, COMPOSED_ROWS):
        yield low, min(low + COMPOSED_ROWS, rows)
