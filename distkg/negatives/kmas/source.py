"""Hard negatives by relations that are alike (KMAS, Liu et al. 2026, arXiv 2605.27023).

What answers a relation like the one that is asked about is a wrong answer of the right kind. The paper's text is not
public; known are its parts: similarity of the relation states that a model has anyway, entities weighed by it, hard and
random negatives mixed, and a share of hard ones that rises after a warm-up and falls again. The choices between are
this module's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from distkg.data.store.known_answers import SORTED_QUERY_BYTES
from distkg.negatives.base import (
    SOURCES,
    Negatives,
    NegativeSource,
    Queries,
    Requires,
    SourceError,
    SourceOptions,
    TrainingProgress,
)
from distkg.negatives.kmas.relation_miner import ONLY_GRAPH, VECTORS, SimilarityCache
from distkg.negatives.kmas.relation_similarity import Alike, AlikeOptions, most_alike
from distkg.negatives.known_facts import known_facts
from distkg.negatives.model_view import ModelView
from distkg.negatives.static.candidate_sets import Pools
from distkg.negatives.training_graph import TrainingGraph

REDRAWS = 4  # of hard negatives that turn out to be known answers; random ones then take their places


class KmasOptions(AlikeOptions):
    schedule: Literal["rise_and_fall", "constant"] = Field("rise_and_fall", description="Of the share of hard ones.")
    warm_up: float = Field(0.1, ge=0, lt=1, description="Progress until which there are none.")
    peak: float = Field(0.55, gt=0, le=1, description="Progress at which they are most.")
    most: float = Field(0.5, ge=0, le=1, description="Their share there, or at all times where it is constant.")
    end: float = Field(0.0, ge=0, le=1, description="Their share at the end.")
    refresh_steps: int = Field(500, ge=1, description="Steps after which actors (negatives.pool) compare them anew.")

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


@SOURCES.register("kmas")
class Kmas(NegativeSource):
    """Uniform negatives, and a scheduled share of hard ones: answers of relations like the query's.

    Attributes:
        tables: of relations that others have compared; None where they are compared in the step.
    """

    Options = KmasOptions
    needs = "a model"
    requires: ClassVar[Requires] = "relations"

    @classmethod
    def memory(cls, options: SourceOptions, queries: int, workers: int) -> int:
        return SORTED_QUERY_BYTES * queries

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        assert isinstance(options, KmasOptions)
        self._options = options
        queries = graph.queries()
        pools = Pools.from_pairs(queries[:, 1], queries[:, 2], 2 * graph.relations, graph.entities)
        self._members, self._starts = torch.from_numpy(pools.members), torch.from_numpy(pools.offsets[:-1])
        self._sizes = torch.from_numpy(np.diff(pools.offsets))
        self._usable = self._sizes[: graph.relations] > 0  # who has an answer of one side has one of the other
        self._model: ModelView | None = None
        self._now = TrainingProgress()
        self.tables: SimilarityCache | None = None
        self._graph_name = ONLY_GRAPH
        self._drawn = self._rejected = 0

    def attach(self, model: ModelView) -> None:
        self._model = model

    def mined_by(self, tables: SimilarityCache, graph: str = ONLY_GRAPH) -> None:
        """Take relations that are alike from tables, in which the graph has this name, while there are some."""
        self.tables, self._graph_name = tables, graph

    def advance(self, moment: TrainingProgress) -> None:
        self._now = moment
        if self.tables is not None and self._model is not None:
            self.tables.refresh(moment.step, lambda: {VECTORS: self._vectors().numpy().copy()})

    def draw(self, queries: Queries, count: int, generator: torch.Generator) -> Negatives:
        if self._model is None:
            raise SourceError("kmas compares the relations of a model in training: it has nothing to show without one")
        return self.draw_by(lambda: self._similarity(queries), queries, count, generator)

    def _vectors(self) -> Tensor:
        assert self._model is not None
        return self._model.relations().cpu()

    def _similarity(self, queries: Queries) -> Tensor:
        directed = F.normalize(self._vectors(), dim=1)
        return directed[queries.relation % self.graph.relations] @ directed.T

    def hard(self, count: int) -> int:
        """How many of ``count`` negatives are hard at this moment; they come first."""
        return round(hard_share(self._now.progress, self._options) * count)

    def draw_by(
        self, similarity: Callable[[], Tensor], queries: Queries, count: int, generator: torch.Generator
    ) -> Negatives:
        """Negatives by a table where there is one, else by similarities float32 [b, R] of all relations to the
        query's."""
        hard = self.hard(count)
        entities = torch.randint(self.entities, (len(queries), count), generator=generator)
        if hard:
            alike = self._alike(similarity, queries)
            entities[:, :hard] = self._hard(alike, queries, entities[:, :hard], generator)
        return Negatives(entities)

    def take_rejections(self) -> tuple[int, int]:
        """Hard negatives drawn since the last call, and how many of them were known answers, and so drawn again."""
        taken = self._drawn, self._rejected
        self._drawn = self._rejected = 0
        return taken

    def _alike(self, similarity: Callable[[], Tensor], queries: Queries) -> Alike:
        own = queries.relation % self.graph.relations
        if self.tables is not None:
            mined = self.tables.latest(self._graph_name, self.graph.relations, self._now.step, len(queries))
            if mined is not None:
                return mined[own]
        return most_alike(similarity(), own, self._usable, self._options)

    def _hard(self, alike: Alike, queries: Queries, instead: Tensor, generator: torch.Generator) -> Tensor:
        """int64 [b, count]; ``instead`` takes the place of what is known, and of all where no relation is usable."""
        relations = self.graph.relations
        side = torch.div(queries.relation, relations, rounding_mode="floor") * relations
        some = alike.chances.sum(1) > 0
        chances = alike.chances.where(some[:, None], 1.0)
        found = instead.clone()
        missing = some[:, None].expand_as(found)
        for _ in range(1 + REDRAWS):
            which = torch.multinomial(chances, found.shape[1], replacement=True, generator=generator)
            drawn = self._member(alike.relations.gather(1, which) + side[:, None], generator)
            right = known_facts(self.graph.known, queries.anchor, queries.relation, drawn, 1)
            right |= drawn == queries.answer[:, None]
            found = torch.where(missing & ~right, drawn, found)
            self._drawn += int(missing.sum())
            missing = missing & right
            self._rejected += int(missing.sum())
            if not bool(missing.any()):
                break
        return found

    def _member(self, pool: Tensor, generator: torch.Generator) -> Tensor:
        """An answer of each of the relations int64 [b, n] in [0, 2R), all alike; of one without any, whatever."""
        size = self._sizes[pool]
        ticket = torch.rand(pool.shape, generator=generator)
        place = (ticket * size).long().clamp_max(size - 1).clamp_min(0)
        return self._members[self._starts[pool] + place].long()
