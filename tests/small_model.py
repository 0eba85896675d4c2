"""A model whose vectors a test writes down, with its entity rows cut over any number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distkg.config import ModelConfig
from distkg.embedding.scorers import make_scorer
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards


class WholeTable:
    """Holds every row, shows this rank's: gathering needs no exchange."""

    def __init__(self, rows: Tensor, ranks: Ranks) -> None:
        self.whole = rows
        self.shards, self.width = Shards(rows.shape[0], ranks.size), rows.shape[1]

    def rows(self, low: int, high: int) -> Tensor:
        return self.whole[low:high]

    def take(self, ids: Tensor) -> Tensor:
        return self.whole[ids]

    def gather(self, ids: Tensor) -> Tensor:
        return self.whole[ids].float()


class SmallModel(nn.Module):
    """Entity vectors [N, E] and relation vectors [2R, ·] under a scorer."""

    def __init__(
        self,
        entities: Tensor,
        relations: Tensor,
        ranks: Ranks | None = None,
        scorer: str = "distmult",
        dim: int | None = None,
    ) -> None:
        super().__init__()
        self.ranks = ranks or Ranks.single()
        self.entities = WholeTable(entities, self.ranks)
        self.relations = relations
        self.num_relations = relations.shape[0] // 2
        self.config = ModelConfig(name=scorer, dim=dim or entities.shape[1])
        self.scorer = make_scorer(self.config)

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        return self.scorer.query(anchor, self.relations[relation])


def random_model(
    entities: int, relations: int, dim: int, seed: int, *, integers: bool = False, scorer: str = "distmult"
) -> tuple[Tensor, Tensor]:
    """Random entity vectors [N, dim] and relation vectors [2R, dim]; small integers make many exact ties."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((entities, dim), (2 * relations, dim))
    if integers:
        return tuple(torch.randint(-1, 2, shape, generator=generator).float() for shape in shapes)  # type: ignore[return-value]
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)  # type: ignore[return-value]
