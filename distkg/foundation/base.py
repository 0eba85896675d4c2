"""What a foundation model is: a relation encoder, and an entity decoder that reads its states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from distkg.config import StrictModel, parse_options
from distkg.data.store.graph_store import Store
from distkg.data.store.identity import LABELS, StoreIdentity, mismatch
from distkg.data.store.relation_text import RELATION_TEXT
from distkg.data.tokens.token_store import FOLDER as TOKENS
from distkg.foundation.graphs.knowledge_graph import Facts, KnowledgeGraph
from distkg.registry import Registry

MODELS: Registry[type[FoundationModel]] = Registry("foundation model")


class GraphMismatchError(ValueError):
    """A model cannot read this graph; the message says why."""


class UnsupportedQuestionError(ValueError):
    """A model cannot answer this kind of question; the message says which models can."""


class ModelOptions(StrictModel):
    """A model's own options, validated."""


class FoundationModel(nn.Module, ABC):
    """Ranks all entities of any graph as answers to queries, or all relations between two entities.

    Attributes:
        name: in the registry.
        ranks: entities, asked (h, r, ?) and (?, r, t), or relations, asked (h, ?, t).
        options: sizes and choices.
        knows_relations: whether relations have vectors of their own, so that ``options.relations`` is needed.
        relations_by_facts: whether states of relations depend on single facts, so that hidden ones must be hidden from
            them.
        knows_entities: whether entities have too, so that ``options.entities`` is.
        reads_relation_text: whether it reads what relations are called, where a store says so.
        trained_on: the store whose entities or relations have vectors of their own in this model; None where there is
            none, or a model of an earlier version does not say.
        grows_from: name of the model whose weights it can begin with, besides its own; none if empty.
    """

    Options: ClassVar[type[ModelOptions]] = ModelOptions
    name: ClassVar[str]
    ranks: ClassVar[Literal["entities", "relations"]] = "entities"
    knows_relations: ClassVar[bool] = False
    relations_by_facts: bool = True
    knows_entities: ClassVar[bool] = False
    reads_relation_text: ClassVar[bool] = False
    grows_from: ClassVar[str] = ""
    trained_on: StoreIdentity | None = None
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

    def graph_of(self, store: Store) -> KnowledgeGraph:
        """The training facts of a store, which the model may be asked about.

        Raises:
            StoreMismatchError: the model has vectors for the entities or relations of another store.
            StoreError: as ``KnowledgeGraph.of_store``.
        """
        self.check_store(store)
        return KnowledgeGraph.of_store(store)

    def check_store(self, store: Store) -> None:
        """Refuse a store whose ids stand for other entities or relations than those that the model has vectors for.

        Raises:
            StoreMismatchError: names the file that differs.
        """
        if self.trained_on is None:
            return
        here = StoreIdentity.of(store)
        names = [name for name, known in zip(LABELS, (self.knows_entities, self.knows_relations), strict=True) if known]
        for name in names:
            if here.files.get(name) != self.trained_on.files.get(name):
                raise mismatch(self.trained_on, store.address, name, f"this {self.name} model")

    @property
    def device(self) -> torch.device:
        """Where its parameters are, and queries must be."""
        return next(self.parameters()).device

    @property
    def reads(self) -> Mapping[str, int]:
        """Tokens of entities that it reads where a graph has them: their name, and the width of their vectors."""
        return {}

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

    def penalty(self, graph: Facts, states: Tensor, relation: Tensor) -> Tensor | None:
        """What training is to keep small besides the loss of scores: float32 []; None for nothing.

        Arguments as of ``scores``.
        """
        return None

    def relation_scores(
        self, graph: KnowledgeGraph, head: Tensor, tail: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Scores of all relations, without inverses, that may lead from head to tail: float32 [B, R].

        Args:
            head, tail: int64 [B].
            weight: as of ``scores``.

        Raises:
            UnsupportedQuestionError: the model ranks entities.
        """
        raise self._cannot_rank("relations")

    @property
    def files_beside_manifest(self) -> list[str]:
        """Files of a store's folder that are not in its manifest, and that the model reads where they are there."""
        text = [RELATION_TEXT] if self.reads_relation_text else []
        return text + [f"{TOKENS}/{name}.json" for name in self.reads]

    def _cannot_rank(self, what: Literal["entities", "relations"]) -> UnsupportedQuestionError:
        others = ", ".join(name for name in MODELS if MODELS[name].ranks == what)
        return UnsupportedQuestionError(
            f"{self.name} ranks {self.ranks}, and was asked for {what}. Take a model that ranks those: {others}"
            + ("; `distkg predict-relation` asks this one" if self.ranks == "relations" else "")
        )

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
