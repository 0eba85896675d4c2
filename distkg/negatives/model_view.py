"""What sources see of a model: its vectors, wherever they lie."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from distkg.kernels.scores.similarity import Similarity
from distkg.sharding.ranks import Ranks


class ModelView(Protocol):
    """A model whose entities are sharded over ranks. No method keeps a graph of gradients.

    Ids may lie on any device; vectors are on that of the ranks.

    Attributes:
        ranks: who holds the shards; ``query`` and ``candidates`` are collective among them.
        similarity: how the scorer compares query vectors with candidate vectors.
        entities: how many, over all ranks.
        first: id of the first entity that this rank holds.
    """

    ranks: Ranks
    similarity: Similarity
    entities: int
    first: int

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Query vectors float32 [b, Q] of entities and relations in [0, 2R), int64 [b]; collective."""
        ...

    def candidates(self, entities: Tensor) -> Tensor:
        """Entities int64 [n] in the role of answers: float32 [n, C]; collective."""
        ...

    def relations(self) -> Tensor:
        """Vectors of the relations, without inverses: float32 [R, w]."""
        ...

    def own_candidates(self) -> Tensor:
        """Those that this rank holds: float32 [rows, C]."""
        ...
