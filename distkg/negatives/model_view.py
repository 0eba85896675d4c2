"""Interface through which negative sources read a model: its vectors, wherever they are stored."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from distkg.kernels.nearest_neighbours import RowBlocks
from distkg.kernels.scores.similarity import Similarity
from distkg.sharding.ranks import Ranks


class ModelView(Protocol):
    """Protocol of a model whose entities are sharded over ranks. No method keeps an autograd graph.

    Ids may be on any device; vectors are on the device of the ranks.

    Attributes:
        ranks: the process group of the shards; ``query`` and ``candidates`` are collective among its ranks.
        similarity: similarity of the scorer between query vectors and candidate vectors.
        entities: number of entities over all ranks.
        first: id of the first entity that this rank holds.
    """

    ranks: Ranks
    similarity: Similarity
    entities: int
    first: int

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Return query vectors float32 [b, Q] of entities and relations in [0, 2R), int64 [b]; collective."""
        ...

    def candidates(self, entities: Tensor) -> Tensor:
        """Return candidate vectors float32 [n, C] of entities int64 [n] as answers; collective."""
        ...

    def relations(self) -> Tensor:
        """Return the vectors of the relations, without inverses: float32 [R, w]."""
        ...

    def own_candidates(self) -> RowBlocks:
        """Return the candidate vectors of this rank's entities: float32 [rows, C], to be read by parts."""
        ...
