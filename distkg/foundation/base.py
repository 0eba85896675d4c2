"""Base class and registry of foundation models: a relation encoder, and an entity decoder that reads its states."""

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
    """Error of a model that cannot read a graph; the message says why."""


class UnsupportedQuestionError(ValueError):
    """Error of a model that cannot answer a kind of question; the message names models that can."""


class ModelOptions(StrictModel):
    """Base class of the validated options of a model."""


class FoundationModel(nn.Module, ABC):
    """Base class of models that rank all entities of a graph as answers to queries, or all relations between two
    entities.

    Attributes:
        name: name in the registry.
        ranks: entities, for queries (h, r, ?) and (?, r, t), or relations, for queries (h, ?, t).
        options: sizes and choices.
        knows_relations: whether relations have vectors of their own, so that ``options.relations`` is required.
        relations_by_facts: whether relation states depend on single facts, so that hidden facts must be hidden from the
            relation encoder.
        knows_entities: whether entities have vectors of their own, so that ``options.entities`` is required.
        reads_relation_text: whether it reads text vectors of relations, where a store has them.
        trained_on: the store whose entities or relations have vectors of their own in this model; None if there is
            none, or if the file of an earlier version does not name it.
        grows_from: name of another model whose weights it can start from; empty for none.
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
        """Create a model with these options.

        Raises:
            ConfigError: wrong options.
        """
        return cls(parse_options(cls.Options, options, "model.options", cls.name))

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.options = options

    def graph_of(self, store: Store) -> KnowledgeGraph:
        """Return the graph of a store's training facts, after checking that the model can be used on it.

        Raises:
            StoreMismatchError: the model has vectors for the entities or relations of another store.
            StoreError: as ``KnowledgeGraph.of_store``.
        """
        self.check_store(store)
        return KnowledgeGraph.of_store(store)

    def check_store(self, store: Store) -> None:
        """Refuse a store whose ids stand for other entities or relations than those for which the model has vectors.

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
        """Device of the parameters, on which queries must be."""
        return next(self.parameters()).device

    @property
    def reads(self) -> Mapping[str, int]:
        """Token modalities that the model reads where a graph has them: name → width of the token vectors."""
        return {}

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of layers over facts, which is the length of the longest path considered."""

    @abstractmethod
    def relation_states(
        self, graph: KnowledgeGraph, anchor: Tensor, relation: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Return the states of all relations for each query: float32 [B, 2R, d]; arguments as of ``scores``."""

    @abstractmethod
    def scores(
        self,
        graph: Facts,
        states: Tensor,
        anchor: Tensor,
        relation: Tensor,
        weight: Tensor | None = None,
        candidates: Tensor | None = None,
        place: Tensor | None = None,
    ) -> Tensor:
        """Return scores of all entities, float32 [B, N], or of candidates, float32 [B, m].

        Args:
            graph: the facts to reason from.
            states: result of ``relation_states`` for these queries.
            anchor, relation: int64 [B], relation in [0, 2R).
            weight: float32 [E] of the facts, or [depth, E] of the facts in each layer; 0 hides a fact. None hides none.
            candidates: int64 [B, m], the entities to be scored; None for all.
            place: int64 [B], the row of ``states`` [D, 2R, d] of each query, where queries share states; None if row b
                is that of query b.
        """

    def encoding_keys(self, graph: KnowledgeGraph, relation: Tensor) -> Tensor | None:
        """Return numbers that are equal for queries with the same relation states, if no fact is hidden: int64 [B].

        None if the states depend on the anchor too, or take no time; they are then neither shared nor cached.
        """
        return None

    def penalty(self, graph: Facts, states: Tensor, relation: Tensor) -> Tensor | None:
        """Return the training loss besides that of scores: float32 []; None if there is none.

        Arguments as of ``scores``.
        """
        return None

    def relation_scores(
        self, graph: KnowledgeGraph, head: Tensor, tail: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Return scores of all relations, without inverses, as predicates from head to tail: float32 [B, R].

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
            f"{self.name} ranks {self.ranks}, not {what}. Use a model that ranks {what}: {others}"
            + (f", or query {self.name} with `distkg predict-relation`" if self.ranks == "relations" else "")
        )

    def forward(
        self,
        graph: KnowledgeGraph,
        anchor: Tensor,
        relation: Tensor,
        weight: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> Tensor:
        """Return ``scores`` from the model's own relation states."""
        states = self.relation_states(graph, anchor, relation, weight)
        return self.scores(graph, states, anchor, relation, weight, candidates)
