"""Embedding model: a scorer, the sharded entity table, and the replicated relations and networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distkg.config import RunConfig
from distkg.embedding.activation import make_hardness
from distkg.embedding.scorers import Scorer, make_scorer
from distkg.kernels.gather_scatter import take_rows
from distkg.kernels.scores.similarity import Similarity
from distkg.randomness import Purpose, stream
from distkg.sharding.optimizers import OPTIMIZERS
from distkg.sharding.ranks import Ranks
from distkg.sharding.table import ShardedTable

_FILL_ROWS = 1 << 14


class Model(nn.Module):
    """Knowledge-graph embedding model for training, ranking and export.

    With ``train=False`` the table has no optimizer state and is to be filled from a checkpoint.

    Attributes:
        scorer: replicated scorer.
        relations: replicated parameter [2R, relation_width], or [R, ·] if inverses are tied.
        hardness: training similarity.
        entities: sharded table [N, entity_width].
        num_relations: R, without inverses.
    """

    def __init__(
        self, config: RunConfig, num_entities: int, num_relations: int, ranks: Ranks, *, train: bool = True
    ) -> None:
        super().__init__()
        self.ranks = ranks
        self.num_entities = num_entities
        self.num_relations = num_relations
        self.tied = config.model.inverse == "tied"
        torch.manual_seed(stream(Purpose.NETWORK, config.train.seed).initial_seed())
        self.scorer: Scorer = make_scorer(config.model).to(ranks.device)
        self._transform = torch.compile(self.scorer.query) if config.train.compile else self.scorer.query
        self._precision = getattr(torch, config.train.precision)
        self.dropout = nn.Dropout(config.model.dropout) if config.model.dropout else nn.Identity()
        relations = torch.empty(num_relations * (1 if self.tied else 2), self.scorer.relation_width)
        self.scorer.init_relations(relations, stream(Purpose.RELATIONS, config.train.seed))
        self.relations = nn.Parameter(relations.to(ranks.device))
        self.hardness = make_hardness(config, self.scorer, len(relations)).to(ranks.device)
        self.entities = ShardedTable(
            num_entities,
            self.scorer.entity_width,
            OPTIMIZERS[config.optimizer.name] if train else None,
            ranks,
            dtype=getattr(torch, config.model.dtype),
        )
        if train:
            self._fill_entities(config.train.seed)

    def _fill_entities(self, seed: int) -> None:
        """Initialise rows as a function of seed and global row block, independent of the number of ranks."""
        low, high = self.entities.shards.range(self.ranks.rank)
        for block in range(low // _FILL_ROWS, -(-high // _FILL_ROWS)):
            start = block * _FILL_ROWS
            size = min(_FILL_ROWS, self.num_entities - start)
            rows = torch.empty(size, self.scorer.entity_width)
            self.scorer.init_entities(rows, stream(Purpose.ENTITIES, seed, block))
            first, last = max(low, start), min(high, start + size)
            self.entities.local[first - low : last - low] = rows[first - start : last - start].to(self.ranks.device)

    def relation_rows(self, relation: Tensor) -> Tensor:
        """Return the vectors [B, relation_width] of relation ids int64 [B] in [0, 2R)."""
        rows = take_rows(self.relations, self._stored(relation))
        if not self.tied:
            return rows
        return torch.where((relation >= self.num_relations)[:, None], self.scorer.inverse(rows), rows)

    def _stored(self, relation: Tensor) -> Tensor:
        """Map relation ids to rows of ``relations``: a tied inverse has the row of its relation."""
        return relation % self.num_relations if self.tied else relation

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Compute query vectors [B, Q] from anchor rows [B, entity_width] and relation ids int64 [B] in [0, 2R)."""
        return self.query_from_rows(anchor, self.relation_rows(relation))

    def query_from_rows(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Compute query vectors float32 [B, Q] from anchor rows and relation rows."""
        autocast = self.ranks.device.type == "cuda" and self._precision != torch.float32
        with torch.autocast(self.ranks.device.type, dtype=self._precision, enabled=autocast):
            query: Tensor = self._transform(self.dropout(anchor), self.dropout(relation))
        return query.float()

    @property
    def training_similarity(self) -> Similarity:
        """Similarity by which training compares queries with candidates: the scorer's own, or an activated distance."""
        return self.hardness.similarity

    def training_query(self, anchor: Tensor, relation: Tensor, relation_rows: Tensor) -> Tensor:
        """Compute query vectors for ``training_similarity`` from anchor rows, relation ids and relation rows."""
        return self.hardness(self.query_from_rows(anchor, relation_rows), self._stored(relation))

    def candidates(self) -> Tensor:
        """Return the candidate vectors of this rank's entities: float32 [rows of this rank, C]."""
        return self.scorer.candidates(self.entities.local.float())

    def average_buffers(self) -> None:
        """Average the batch-norm statistics, which each rank collects on its own queries, over ranks; collective."""
        for buffer in self.buffers():
            if buffer.is_floating_point():
                self.ranks.all_reduce(buffer)
                buffer /= self.ranks.size
