"""Similarity of relations: the probability with which answers of one relation are drawn as negatives of another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from distkg.negatives.base import SourceOptions

ROWS = 256  # relations compared with all others in one block
COMPARED_BYTES = 24  # of a pair in a block: its similarity, with and without those left out, and one-hot marks


class AlikeOptions(SourceOptions):
    relations: int = Field(
        16, ge=1, description="Number of relations most similar to the query's whose answers are drawn."
    )
    temperature: float = Field(0.1, gt=0, description="Temperature of the softmax over relation similarities.")
    include_self: bool = Field(True, description="Also draw answers of the query's own relation.")
    self_share: float = Field(0.5, ge=0, le=1, description="Maximum probability of the query's own relation.")


@dataclass(frozen=True)
class Alike:
    """Most similar relations of each row.

    Attributes:
        relations: int64 [b, k], without inverses.
        chances: float32 [b, k]; rows sum to 1, or to 0 if no relation can be drawn from.
    """

    relations: Tensor
    chances: Tensor

    def __getitem__(self, rows: Tensor) -> Alike:
        return Alike(self.relations[rows], self.chances[rows])


def most_alike(similarity: Tensor, own: Tensor, usable: Tensor, options: AlikeOptions) -> Alike:
    """Return the ``options.relations`` most similar relations of each row.

    Args:
        similarity: float32 [b, R], of each relation to that of the row.
        own: int64 [b], the row's relation, in [0, R).
        usable: bool [R], True for relations that have facts.
    """
    itself = F.one_hot(own, similarity.shape[1]).bool()
    allowed = usable if options.include_self else usable & ~itself
    best = similarity.masked_fill(~allowed, -torch.inf).topk(min(options.relations, similarity.shape[1]), dim=1)
    chances = torch.softmax(best.values / options.temperature, 1).nan_to_num(0.0)
    return Alike(best.indices, _with_bounded_self(chances, best.indices == own[:, None], options.self_share))


def _with_bounded_self(chances: Tensor, itself: Tensor, most: float) -> Tensor:
    """Limit the probability of the marked relation to ``most`` if there are others; chances are float32 [b, k]."""
    others = chances.masked_fill(itself, 0.0)
    rest = others.sum(1, keepdim=True)
    own = chances.sum(1, keepdim=True) - rest
    capped = own.clamp_max(most)
    scaled = others * ((1 - capped) / rest.clamp_min(1e-30)) + itself * capped
    return torch.where((own > most) & (rest > 0), scaled, chances)


@dataclass(frozen=True)
class RelationTable:
    """Most similar relations of every relation of a graph, at one step of the training.

    Attributes:
        version: the step whose weights were compared.
        relations: int32 [R, k].
        chances: float32 [R, k], as in ``Alike``.
    """

    version: int
    relations: NDArray[np.int32]
    chances: NDArray[np.float32]

    def alike(self) -> Alike:
        return Alike(torch.from_numpy(self.relations.astype(np.int64)), torch.from_numpy(self.chances.copy()))

    def fault(self, relations: int) -> str | None:
        """Describe the first difference from a valid table of so many relations (shapes, dtypes, relation ids, finite
        and non-negative chances); None if it is valid."""
        names, chances = self.relations, self.chances
        if names.shape != chances.shape or names.ndim != 2 or len(names) != relations:
            return f"relations and chances have the shapes {names.shape} and {chances.shape}, for {relations} relations"
        if names.dtype.kind != "i" or not bool(((names >= 0) & (names < relations)).all()):
            return f"relations holds others than the relations 0 to {relations - 1}"
        if chances.dtype != np.float32 or not bool((np.isfinite(chances) & (chances >= 0)).all()):
            return "chances holds others than finite float32 numbers from 0 on"
        return None


def table_memory(relations: int, width: int) -> int:
    """Return the bytes that ``table_of`` takes for vectors of ``width``, which are among them, at most."""
    return 3 * 4 * relations * width + COMPARED_BYTES * min(ROWS, relations) * relations


def table_of(vectors: Tensor, usable: Tensor, options: AlikeOptions, version: int) -> RelationTable:
    """Compare all relations by the cosines of their vectors, float32 [R, w]; ``usable`` as in ``most_alike``."""
    directed = F.normalize(vectors, dim=1)
    own = torch.arange(len(vectors))
    parts = [most_alike(directed[rows] @ directed.T, rows, usable, options) for rows in own.split(ROWS)]
    relations = torch.cat([part.relations for part in parts]).int()
    return RelationTable(version, relations.numpy(), torch.cat([part.chances for part in parts]).numpy())
