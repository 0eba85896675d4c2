"""What a foundation model is: a relation encoder, and an entity decoder that reads its states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from distkg.config import parse_options
from distkg.foundation.graph import Facts, KnowledgeGraph
from distkg.registry import Registry

MODELS: Registry[type[FoundationModel]] = Registry("foundation model")


class GraphMismatchError(ValueError):
    """A model cannot read this graph; the message says why."""


class ModelOptions(BaseModel):
    """A model's own options, validated."""

    model_config = ConfigDict(extra="forbid")


class FoundationModel(nn.Module, ABC):
    """Ranks all entities of any graph as answers to queries.

    Attributes:
        name: in the registry.
        options: sizes and choices.
        knows_relations: whether relations have vectors of their own, so that ``options.relations`` is needed.
    """

    Options: ClassVar[type[ModelOptions]] = ModelOptions
    name: ClassVar[str]
    knows_relations: ClassVar[bool] = False
    options: ModelOptions

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """With these options.

        Raises:
            ConfigError: wrong options.
        """
        return cls(parse_options(cls.Options, options, "model.options", cls.name))

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.options = options

    @property
    def device(self) -> torch.device:
        """Where its parameters are, and queries must be."""
        return next(self.parameters()).device

    @property
    @abstractmethod
    def depth(self) -> int:
        """Layers over facts, the longest path that is looked at."""

    @abstractmethod
    def relation_states(
        self, graph: KnowledgeGraph, anchor: Tensor, relation: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """States of all relations in the light of each query: float32 [B, 2R, d]; arguments as of ``scores``."""

    @abstractmethod
    def scores(
        self,
        graph: Facts,
        states: Tensor,
        anchor: Tensor,
        relation: Tensor,
        weight: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> Tensor:
        """Scores of all entities, float32 [B, N], or of some, float32 [B, m].

        Args:
            graph: the facts to reason from.
            states: of ``relation_states`` for these queries.
            anchor, relation: int64 [B], relation in [0, 2R).
            weight: float32 [E] of the facts, or [depth, E] of the facts in each layer; 0 hides one. None hides none.
            candidates: int64 [B, m], the entities to be scored; None for all.
        """

    def forward(
        self,
        graph: KnowledgeGraph,
        anchor: Tensor,
        relation: Tensor,
        weight: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> Tensor:
        """``scores`` from the model's own relation states."""
        states = self.relation_states(graph, anchor, relation, weight)
        return self.scores(graph, states, anchor, relation, weight, candidates)
