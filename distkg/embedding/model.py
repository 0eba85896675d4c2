"""Embedding model: a scorer, the sharded entity table, and the replicated relations and networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from distkg.config import RunConfig
from distkg.embedding.activation import make_hardness
from distkg.embedding.composed.table import ComposedTable
from distkg.embedding.scorers import Scorer, make_scorer
from distkg.kernels.gather_scatter import take_rows
from distkg.kernels.scores.similarity import Similarity
from distkg.randomness import Purpose, stream
from distkg.sharding.optimizers import OPTIMIZERS
from distkg.sharding.ranks import Ranks
from distkg.sharding.row_storage import DeviceMemory, MappedFiles, RowStorage
from distkg.sharding.shards import Shards
from distkg.sharding.table import ShardedTable

BY_RELATION = ("relations", "hardness.raw_scale")
"""Parameters of a model with a row for each relation and, unless inverses are tied, each inverse relation."""

_FILL_ROWS = 1 << 14


def storage_of(config: RunConfig, ranks: Ranks) -> RowStorage:
    """Return new storage of a table of entities, as configured in ``train.table_storage``."""
    disk = config.train.table_storage == "disk"
    return MappedFiles(config.train.table_folder) if disk else DeviceMemory(ranks.device)


def rows_by_relation(config: RunConfig) -> Sequence[str]:
    """Return the parameters of which a step uses the rows of its queries' relations only; none if it ranks all."""
    return () if config.objective.relation_prediction else BY_RELATION


class EntityTable(Protocol):
    """Table of entity vectors as ranking, prediction and export read it, one range of rows per rank.

    Attributes:
        shards: range of rows of each rank.
        width: number of values in a row.
    """

    shards: Shards
    width: int

    @property
    def dtype(self) -> torch.dtype:
        """Return float32 or bfloat16."""
        ...

    def rows(self, low: int, high: int) -> Tensor:
        """Return rows ``low … high - 1`` of this rank: [high - low, width]."""
        ...

    def take(self, ids: Tensor) -> Tensor:
        """Return the rows of ids int64 [k] of this rank: [k, width]."""
        ...

    def gather(self, ids: Tensor) -> Tensor:
        """Return the rows of any ids int64 [k], with repetitions: float32 [k, width]; collective."""
        ...


class Model(nn.Module):
    """Knowledge-graph embedding model for ranking, prediction and export; its parameters are those of a checkpoint.

    Attributes:
        scorer: replicated scorer.
        relations: replicated parameter [2R, relation_width], or [R, ·] if inverses are tied.
        hardness: training similarity.
        entities: table [N, entity_width].
        num_relations: R, without inverses.
    """

    def __init__(
        self,
        config: RunConfig,
        num_entities: int,
        num_relations: int,
        ranks: Ranks,
        entities: EntityTable,
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
        self.entities = entities

    def relation_rows(self, relation: Tensor) -> Tensor:
        """Return the vectors [B, relation_width] of relation ids int64 [B] in [0, 2R)."""
        rows = take_rows(self.relations, self.relation_row(relation))
        if not self.tied:
            return rows
        return torch.where((relation >= self.num_relations)[:, None], self.scorer.inverse(rows), rows)

    def relation_row(self, relation: Tensor) -> Tensor:
        """Map relation ids to rows of the parameters ``BY_RELATION``: a tied inverse has the row of its relation."""
        return relation % self.num_relations if self.tied else relation

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Compute query vectors [B, Q] from anchor rows [B, entity_width] and relation ids int64 [B] in [0, 2R)."""
        return self.query_from_rows(anchor, self.relation_rows(relation))

    def query_from_rows(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Compute query vectors float32 [B, Q] from anchor rows and relation rows."""
        with self._reduced():
            query: Tensor = self._transform(self.dropout(anchor), self.dropout(relation))
        return query.float()

    def _reduced(self) -> AbstractContextManager[object]:
        """Return the context in which relations are transformed: on a GPU, in the configured precision."""
        reduced = self.ranks.device.type == "cuda" and self._precision != torch.float32
        return torch.autocast("cuda", dtype=self._precision) if reduced else nullcontext()

    def relation_operands(self, relation: Tensor) -> Tensor:
        """Return the operands float32 [R, O] of relation ids int64 [R] for ``cross_queries``, and for the scorer's
        ``relation_queries``."""
        with self._reduced():
            return self.scorer.operand(self.dropout(self.relation_rows(relation))).float()

    def cross_queries(self, anchor: Tensor, operand: Tensor, relation: Tensor) -> Tensor:
        """Compute the query vectors for ``training_similarity`` of every anchor with every relation.

        Args:
            anchor: anchor rows float32 [B, entity_width].
            operand: float32 [R, O], of ``relation_operands``.
            relation: int64 [R], ids of the relations.

        Returns:
            float32 [B · R, Q], first those of the first anchor.
        """
        with self._reduced():
            query = self.scorer.cross_queries(self.dropout(anchor), operand).flatten(0, 1).float()
        return self.hardness(query, self.relation_row(relation).repeat(len(anchor)))

    @property
    def training_similarity(self) -> Similarity:
        """Similarity by which training compares queries with candidates: the scorer's own, or an activated distance."""
        return self.hardness.similarity

    def training_query(self, anchor: Tensor, relation: Tensor, relation_rows: Tensor) -> Tensor:
        """Compute query vectors for ``training_similarity`` from anchor rows, relation ids and relation rows."""
        return self.hardness(self.query_from_rows(anchor, relation_rows), self.relation_row(relation))

    def candidates(self) -> Tensor:
        """Return the candidate vectors of this rank's entities: float32 [rows of this rank, C]."""
        return self.scorer.candidates(self.entities.rows(*self.entities.shards.range(self.ranks.rank)).float())

    def average_buffers(self) -> None:
        """Average the batch-norm statistics, which each rank collects on its own queries, over ranks; collective."""
        for buffer in self.buffers():
            if buffer.is_floating_point():
                self.ranks.all_reduce(buffer)
                buffer /= self.ranks.size


class TrainingModel(Model):
    """Embedding model in training: initial parameters, and an entity table with an optimizer.

    Attributes:
        entities: sharded table [N, entity_width].
    """

    entities: ShardedTable | ComposedTable

    def __init__(
        self,
        config: RunConfig,
        num_entities: int,
        num_relations: int,
        ranks: Ranks,
        frozen: tuple[int, int] = (0, 0),
        composed: ComposedTable | None = None,
    ) -> None:
        """Create a model whose first entities and relations, as many as ``frozen`` says, are not trained; nor are, if
        there are any, the networks that they were trained with. Entity rows are those of ``composed``, else stored."""
        assert (composed is not None) == (config.model.entities == "nodepiece"), "model.entities says which rows"
        table = composed or self._stored_table(config, num_entities, ranks, frozen[0])
        super().__init__(config, num_entities, num_relations, ranks, table)
        self._frozen_relations = frozen[1] if any(frozen) else None
        self.train()
        if composed is not None:
            composed.encoder.initialise(self.scorer, config.train.seed)
            return
        low, high = table.shards.range(ranks.rank)
        for first, rows in initial_rows(self.scorer, num_entities, low, high, config.train.seed):
            table.local[first - low : first - low + len(rows)] = rows.to(ranks.device)

    @staticmethod
    def _stored_table(config: RunConfig, num_entities: int, ranks: Ranks, frozen: int) -> ShardedTable:
        optimizer, dtype = OPTIMIZERS[config.optimizer.name], getattr(torch, config.model.dtype)
        width = make_scorer(config.model).entity_width
        storage = storage_of(config, ranks)
        return ShardedTable(num_entities, width, optimizer, ranks, dtype, storage, frozen=frozen)

    @property
    def trained(self) -> dict[str, Tensor] | None:
        """Return which replicated values are trained, as ``ReplicatedParameters`` reads it; None for all."""
        if self._frozen_relations is None:
            return None
        new = torch.arange(self.num_relations) >= self._frozen_relations
        rows = new if self.tied else new.repeat(2)
        named = {name: values for name, values in self.named_parameters() if name in BY_RELATION}
        return {name: rows[:, None].expand(values.shape) for name, values in named.items()}

    def train(self, mode: bool = True) -> TrainingModel:
        """Set the mode of all layers; batch norm of a frozen network keeps its running statistics."""
        super().train(mode)
        if self._frozen_relations is not None:
            for layer in self.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        return self

    def average_buffers(self) -> None:
        if self._frozen_relations is None:
            super().average_buffers()


def initial_rows(scorer: Scorer, entities: int, low: int, high: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the initial rows low … high - 1 of a table of so many entities: first row, and float32 [n, entity_width].

    Rows are a function of seed and global row block, independent of the number of ranks.
    """
    for block in range(low // _FILL_ROWS, -(-high // _FILL_ROWS)):
        start = block * _FILL_ROWS
        size = min(_FILL_ROWS, entities - start)
        rows = torch.empty(size, scorer.entity_width)
        scorer.init_entities(rows, stream(Purpose.ENTITIES, seed, block))
        first, last = max(low, start), min(high, start + size)
        yield first, rows[first - start : last - start]
