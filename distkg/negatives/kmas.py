"""Hard negatives by relations that are alike (KMAS, Liu et al. 2026, arXiv 2605.27023).

What answers a relation like the one that is asked about is a wrong answer of the right kind. The paper's text is not
public; known are its parts: similarity of the relation states that a model has anyway, entities weighed by it, hard and
random negatives mixed, and a share of hard ones that rises after a warm-up and falls again. The choices between are
this module's.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from distkg.negatives.base import (
    SOURCES,
    LooksAt,
    Moment,
    Negatives,
    NegativeSource,
    Queries,
    SourceError,
    SourceOptions,
)
from distkg.negatives.known_facts import known_facts
from distkg.negatives.live import LiveModel
from distkg.negatives.pools import Pools
from distkg.negatives.training_graph import TrainingGraph

QUERY_BYTES = 60  # of a known answer, while they are sorted
REDRAWS = 4  # of hard negatives that turn out to be known answers; random ones then take their places


class KmasOptions(SourceOptions):
    relations: int = Field(16, ge=1, description="Relations most like the query's whose answers are drawn.")
    temperature: float = Field(0.1, gt=0, description="Of the softmax over their similarities.")
    include_self: bool = Field(True, description="Draw answers of the query's own relation as well.")
    self_share: float = Field(0.5, ge=0, le=1, description="Its weight among them, at most.")
    schedule: Literal["rise_and_fall", "constant"] = Field("rise_and_fall", description="Of the share of hard ones.")
    warm_up: float = Field(0.1, ge=0, lt=1, description="Progress until which there are none.")
    peak: float = Field(0.55, gt=0, le=1, description="Progress at which they are most.")
    most: float = Field(0.5, ge=0, le=1, description="Their share there, or at all times where it is constant.")
    end: float = Field(0.0, ge=0, le=1, description="Their share at the end.")

    @model_validator(mode="after")
    def _in_order(self) -> KmasOptions:
        if self.warm_up >= self.peak:
            raise ValueError(f"warm_up ({self.warm_up}) must come before peak ({self.peak})")
        return self


def hard_share(progress: float, options: KmasOptions) -> float:
    """Share of hard negatives when so much of the training is done."""
    if options.schedule == "constant":
        return options.most
    places = [0.0, options.warm_up, options.peak, 1.0]
    end = options.end if options.peak < 1 else options.most
    return float(np.interp(progress, places, [0.0, 0.0, options.most, end]))


def relation_weights(similarity: Tensor, own: Tensor, usable: Tensor, options: KmasOptions) -> Tensor:
    """Chances of relations whose answers are drawn: float32 [b, R], rows sum to 1, or to 0 where none is usable.

    Args:
        similarity: float32 [b, R], of each relation to that of the query.
        own: int64 [b], the query's relation, in [0, R).
        usable: bool [b, R], relations that have answers on the side that is asked for.
    """
    itself = F.one_hot(own, similarity.shape[1]).bool()
    usable = usable if options.include_self else usable & ~itself
    hidden = similarity.masked_fill(~usable, -torch.inf)
    best = hidden.topk(min(options.relations, hidden.shape[1]), dim=1)
    chosen = torch.full_like(hidden, -torch.inf).scatter(1, best.indices, best.values)
    weights = torch.softmax(chosen / options.temperature, 1).nan_to_num(0.0)
    of_own = weights.masked_fill(~itself, 0.0).sum(1, keepdim=True)
    others = weights.masked_fill(itself, 0.0)
    rest = others.sum(1, keepdim=True)
    capped = of_own.clamp_max(options.self_share)
    scaled = others * ((1 - capped) / rest.clamp_min(1e-30)) + itself * capped
    return torch.where((of_own > options.self_share) & (rest > 0), scaled, weights)


@SOURCES.register("kmas")
class Kmas(NegativeSource):
    """Uniform negatives, and a scheduled share of hard ones: answers of relations like the query's."""

    Options = KmasOptions
    needs = "a model"
    looks_at: ClassVar[LooksAt] = "relations"

    @classmethod
    def memory(cls, options: SourceOptions, queries: int, workers: int) -> int:
        return QUERY_BYTES * queries

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        assert isinstance(options, KmasOptions)
        self._options = options
        queries = graph.queries()
        pools = Pools.from_pairs(queries[:, 1], queries[:, 2], 2 * graph.relations, graph.entities)
        self._members, self._starts = torch.from_numpy(pools.members), torch.from_numpy(pools.offsets[:-1])
        self._sizes = torch.from_numpy(np.diff(pools.offsets))
        self._model: LiveModel | None = None
        self._now = Moment()

    def attach(self, model: LiveModel) -> None:
        self._model = model

    def advance(self, moment: Moment) -> None:
        self._now = moment

    def draw(self, queries: Queries, count: int, generator: torch.Generator) -> Negatives:
        if self._model is None:
            raise SourceError("kmas compares the relations of a model in training: it has nothing to show without one")
        vectors = F.normalize(self._model.relations().cpu(), dim=1)
        own = queries.relation % self.graph.relations
        return self.draw_by(vectors[own] @ vectors.T, queries, count, generator)

    def draw_by(self, similarity: Tensor, queries: Queries, count: int, generator: torch.Generator) -> Negatives:
        """Negatives by the similarities float32 [b, R] of all relations to the query's; hard ones first."""
        hard = round(hard_share(self._now.progress, self._options) * count)
        entities = torch.randint(self.entities, (len(queries), count), generator=generator)
        if hard:
            entities[:, :hard] = self._hard(similarity, queries, hard, entities[:, :hard], generator)
        return Negatives(entities)

    def _hard(
        self, similarity: Tensor, queries: Queries, count: int, instead: Tensor, generator: torch.Generator
    ) -> Tensor:
        """int64 [b, count]; ``instead`` takes the place of what is known, and of all where no relation is usable."""
        relations = self.graph.relations
        side = torch.div(queries.relation, relations, rounding_mode="floor") * relations
        usable = self._sizes[torch.arange(relations) + side[:, None]] > 0
        weights = relation_weights(similarity, queries.relation % relations, usable, self._options)
        some = weights.sum(1) > 0
        weights[~some] = 1.0
        found = instead.clone()
        missing = some[:, None].expand_as(found)
        for _ in range(1 + REDRAWS):
            pool = torch.multinomial(weights, count, replacement=True, generator=generator) + side[:, None]
            ticket = torch.rand(pool.shape, generator=generator)
            place = (ticket * self._sizes[pool]).long().clamp_max(self._sizes[pool] - 1).clamp_min(0)
            drawn = self._members[self._starts[pool] + place].long()
            right = known_facts(self.graph.known, queries.anchor, queries.relation, drawn, 1)
            right |= drawn == queries.answer[:, None]
            found = torch.where(missing & ~right, drawn, found)
            missing = missing & right
            if not bool(missing.any()):
                break
        return found
