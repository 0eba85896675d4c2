"""Negative sources: wrong answers for queries, over all entities of all shards."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from distkg.registry import Registry

SOURCES: Registry[type[NegativeSource]] = Registry("negative source")


class NegativeSource(ABC):
    """Draws entities to be ranked below the answer."""

    def __init__(self, entities: int, degrees: np.ndarray) -> None:
        """``degrees`` int64 [N]: how often each entity occurs in the training triples."""
        self.entities = entities

    @abstractmethod
    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Entities int64 of ``shape`` (rows that share or own their draws, negatives per row)."""


@SOURCES.register("uniform")
class Uniform(NegativeSource):
    """Every entity alike."""

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        return torch.randint(self.entities, shape, generator=generator)


@SOURCES.register("degree")
class Degree(NegativeSource):
    """In proportion to an entity's occurrences in the training triples; those without any are never drawn."""

    def __init__(self, entities: int, degrees: np.ndarray) -> None:
        super().__init__(entities, degrees)
        self._cumulative = torch.from_numpy(np.cumsum(degrees))

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        ticket = torch.randint(int(self._cumulative[-1]), shape, generator=generator)
        return torch.searchsorted(self._cumulative, ticket, right=True)
