"""Base class of scorers: a transform of anchor and relation into a query vector, and a similarity.

``score(anchor, relation, answer) = similarity(query(anchor, relation), candidate(answer))``

Distribution, negatives, evaluation, prediction and export all work on this form, so a new scorer is one class in one
file. See ``distmult.py`` for the shortest one.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from distkg.config import ConfigError, ModelConfig, StrictModel, parse_options
from distkg.embedding.scorers.algebra import moduli
from distkg.kernels.compositions import Composition
from distkg.kernels.scores.similarity import DOT, Similarity
from distkg.registry import Registry


class Options(StrictModel):
    """Validated options of a scorer: ``model.options`` in the configuration."""


class Scorer(nn.Module):
    """Base class of all scorers.

    Layers of a scorer (TuckER's core, ConvE's convolution) are initialised in the constructor from torch's global
    generator: seed it equally on every rank.

    Attributes:
        options: options of the scorer with all defaults filled in, as exports record them.
        entity_width: floats stored per entity; at least ``dim``.
        relation_width: floats stored per relation.
        similarity: similarity of query vectors and candidate vectors.
        tied_inverse: True if ``inverse`` computes r⁻¹ in closed form.
        bilinear: True if the score is ⟨hR, t⟩ with a matrix R of the relation, up to batch normalisation and dropout.
        number_parts: components of the numbers in a vector, in as many equal pieces of it: 2 for complex numbers.
        composition: compiled composition, if ``query(anchor, relation) = anchor ∘ operand(relation)``; else None.
        is_composed: whether it is that of ``query``, not of a query that a subclass has replaced.
    """

    Options: ClassVar[type[BaseModel]] = Options
    tied_inverse: bool = False
    bilinear: bool = False
    similarity: Similarity = DOT
    number_parts: ClassVar[int] = 1
    composition: ClassVar[Composition | None] = None
    is_composed: ClassVar[bool] = False

    def __init_subclass__(cls, **settings: Any) -> None:
        """Drop what a parent says of its query, if a class has another: compiled forms would compute the parent's."""
        super().__init_subclass__(**settings)
        if "composition" in cls.__dict__:
            cls.is_composed = cls.composition is not None
        elif "query" in cls.__dict__:
            cls.is_composed = False
        for name in ("bilinear", "relation_queries"):
            if "query" in cls.__dict__ and name not in cls.__dict__:
                setattr(cls, name, getattr(Scorer, name))

    def __init__(self, dim: int, options: BaseModel) -> None:
        super().__init__()
        self.dim = dim
        self.options = options
        self.entity_width = dim
        self.relation_width = dim

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Compute query vectors.

        Args:
            anchor: float32 [B, entity_width].
            relation: float32 [B, relation_width].

        Returns:
            float32 [B, Q], to be compared with ``candidates`` by ``similarity``. Default: the composition.
        """
        if self.composition is None:
            raise TypeError(f"{type(self).__name__} does not define query()")
        return self.composition.plain(anchor, self.operand(relation))

    def operand(self, relation: Tensor) -> Tensor:
        """Return the operands [B, O] of ``composition``, ``cross_queries`` and ``relation_queries`` from relation rows
        [B, relation_width]; those of a composition are as wide as entity rows. Default: the whole rows."""
        return relation

    def cross_queries(self, anchor: Tensor, operand: Tensor) -> Tensor:
        """Compute the query vectors of every anchor with every relation.

        Args:
            anchor: float32 [B, entity_width].
            operand: float32 [R, O], operands of the relations. The default takes the whole rows of relations, unless
                the scorer has a composition.

        Returns:
            float32 [B, R, Q].
        """
        if self.is_composed and self.composition is not None:
            return self.composition.cross(anchor, operand)
        queries, relations = len(anchor), len(operand)
        pairs = self.query(anchor.repeat_interleave(relations, 0), operand.repeat(queries, 1))
        return pairs.unflatten(0, (queries, relations))

    def relation_queries(self, anchor: Tensor, answer: Tensor) -> Tensor | None:
        """Return vectors [B, O] whose ``similarity`` with the operand of a relation is the score of a fact, but for a
        number of the pair, to rank relations without a query vector for each; None if the scorer has no such form,
        which is the default. Batch norms use their running statistics.

        Args:
            anchor, answer: float32 [B, entity_width].
        """
        return None

    def candidates(self, rows: Tensor) -> Tensor:
        """Return the candidate vectors [N, C] of entity rows [N, entity_width]. Default: the whole rows."""
        return rows

    def answer_rows(self, anchor: Tensor, query: Tensor) -> Tensor:
        """Return entity rows [B, entity_width] that queries point to, from anchor rows and query vectors [B, Q].

        The first rows of new entities are made of them; a linear function of each column is fitted to them, so scale
        and constant columns do not matter. Default: the query vectors if they are as wide as entity rows, else the
        anchor rows.
        """
        return query if query.shape[1] == self.entity_width else anchor

    def forward_product(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Return hR [B, ·] of anchor rows and relation rows; only if ``bilinear``. Default: the query."""
        return self.query(anchor, relation)

    def dual_product(self, answer: Tensor, relation: Tensor) -> Tensor:
        """Return tRᵀ [B, ·] of answer rows and relation rows, with ⟨h, tRᵀ⟩ = ⟨hR, t⟩; only if ``bilinear``. Default:
        the query of the inverse relation."""
        return self.query(answer, self.inverse(relation))

    def inverse(self, relation: Tensor) -> Tensor:
        """Compute the vectors of r⁻¹ from those of r, [B, relation_width]; only if ``tied_inverse``."""
        raise TypeError(f"{type(self).__name__} has no closed form of inverse relations; use model.inverse: learned")

    def init_entities(self, rows: Tensor, generator: torch.Generator) -> None:
        """Initialise entity rows [n, entity_width] in place; n may be any part of the table.

        Default: 10⁻³ times a standard normal (the reference settings of Lacroix et al. 2018).
        """
        rows.normal_(0, 1e-3, generator=generator)

    def init_relations(self, rows: Tensor, generator: torch.Generator) -> None:
        """Initialise relation rows [n, relation_width] in place. Default: as entities."""
        self.init_entities(rows, generator)

    def factors(self, anchor: Tensor, relation: Tensor, answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the non-negative magnitudes that N3 (Lacroix et al. 2018, eq. 4) and L2 penalise: three of [B, ·].

        Default: absolute values of the vectors' numbers.
        """
        if self.number_parts == 1:
            return anchor.abs(), relation.abs(), answer.abs()
        return (
            moduli(anchor, self.number_parts),
            moduli(relation, self.number_parts),
            moduli(answer, self.number_parts),
        )


SCORERS: Registry[type[Scorer]] = Registry("scorer", "distkg.scorers")


def make_scorer(config: ModelConfig) -> Scorer:
    """Build the scorer of a configuration.

    Raises:
        UnknownNameError: no such scorer.
        ConfigError: an unknown option, an unsuitable dimension, or a tied inverse that the scorer lacks.
    """
    scorer_type = SCORERS[config.name]
    options = parse_options(scorer_type.Options, config.options, "model.options", config.name)
    scorer = scorer_type(config.dim, options)
    if config.inverse == "tied" and not scorer.tied_inverse:
        detail = f" with {config.options}" if config.options else ""
        raise ConfigError(
            f"model.inverse: {config.name}{detail} has no closed form of inverse relations; use `learned`"
        )
    return scorer


def require_multiple(dim: int, factor: int, scorer: str) -> None:
    """Raise ConfigError unless ``dim`` is a multiple of ``factor``."""
    if dim % factor:
        raise ConfigError(f"model.dim={dim}: {scorer} needs a multiple of {factor}; try {dim + factor - dim % factor}")
