"""Hard negatives from similar relations (KMAS, Liu et al. 2026, arXiv 2605.27023).

An answer of a similar relation is a plausible wrong answer. The paper's text is not public. Its known parts are:
similarity of the model's relation states, entities weighted by it, a mixture of hard and random negatives, and a share
of hard negatives that rises after a warm-up and falls again. This module chooses the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from distkg.config import PoolConfig
from distkg.data.store.known_answers import SORTED_QUERY_BYTES
from distkg.negatives.base import (
    SOURCES,
    HostedReply,
    Negatives,
    NegativeSource,
    Queries,
    Requires,
    RunSizes,
    SourceError,
    SourceOptions,
    TrainingProgress,
)
from distkg.negatives.kmas.relation_similarity import Alike, AlikeOptions, most_alike
from distkg.negatives.kmas.similarity_cache import SimilarityCache
from distkg.negatives.known_facts import known_facts
from distkg.negatives.model_view import ModelView
from distkg.negatives.prefetch.pool_client import RELATIONS, Arrays, Pool, PoolClient
from distkg.negatives.static.candidate_sets import Pools
from distkg.negatives.training_graph import TrainingGraph

REDRAWS = 4  # attempts to replace hard negatives that are known answers; then random ones are used


class KmasOptions(AlikeOptions):
    schedule: Literal["rise_and_fall", "constant"] = Field(
        "rise_and_fall", description="Schedule of the share of hard negatives."
    )
    warm_up: float = Field(
        0.1, ge=0, lt=1, description="Training progress in [0, 1) up to which there are no hard negatives."
    )
    peak: float = Field(
        0.55, gt=0, le=1, description="Training progress at which the share of hard negatives is largest."
    )
    most: float = Field(
        0.5, ge=0, le=1, description="Share of hard negatives at the peak, or at all times with schedule: constant."
    )
    end: float = Field(0.0, ge=0, le=1, description="Share of hard negatives at the end of training.")
    refresh_steps: int = Field(
        500, ge=1, description="Steps after which actors (negatives.pool) compare relations again."
    )

    @model_validator(mode="after")
    def _in_order(self) -> KmasOptions:
        if self.warm_up >= self.peak:
            raise ValueError(f"warm_up ({self.warm_up}) must come before peak ({self.peak})")
        return self


def hard_share(progress: float, options: KmasOptions) -> float:
    """Return the share of hard negatives at a progress of the training."""
    if options.schedule == "constant":
        return options.most
    places = [0.0, options.warm_up, options.peak, 1.0]
    end = options.end if options.peak < 1 else options.most
    return float(np.interp(progress, places, [0.0, 0.0, options.most, end]))


@SOURCES.register("kmas")
class Kmas(NegativeSource):
    """Uniform negatives and a scheduled share of hard ones: answers of relations similar to the query's."""

    Options = KmasOptions
    needs = "a model"
    requires: ClassVar[Requires] = "relations"
    hosted_reply: ClassVar[HostedReply] = "similarities"
    hard_first: ClassVar[bool] = True

    @classmethod
    def memory(cls, options: SourceOptions, sizes: RunSizes) -> int:
        return SORTED_QUERY_BYTES * sizes.queries

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        self._options = cast(KmasOptions, options)
        queries = graph.queries()
        pools = Pools.from_pairs(queries[:, 1], queries[:, 2], 2 * graph.relations, graph.entities)
        self._members, self._starts = torch.from_numpy(pools.members), torch.from_numpy(pools.offsets[:-1])
        self._sizes = torch.from_numpy(np.diff(pools.offsets))
        self._usable = self._sizes[: graph.relations] > 0  # a relation has answers on both sides or on neither
        self._model: ModelView | None = None
        self._now = TrainingProgress()
        self._tables: SimilarityCache | None = None  # None if the step compares relations
        self._drawn = self._rejected = 0

    def attach(self, model: ModelView) -> None:
        self._model = model

    def connect(self, pool: Pool[Any, Any], how: PoolConfig, parameters: Callable[[], Arrays] | None = None) -> None:
        steps, parameters = self._options.refresh_steps, parameters or self._own_parameters
        self._tables = SimilarityCache(pool, how, self.graph.relations, steps, parameters)

    def pool_clients(self) -> Sequence[PoolClient[Any, Any]]:
        return () if self._tables is None else (self._tables.client,)

    def _own_parameters(self) -> Arrays:
        return {RELATIONS: self._vectors().numpy().copy()}

    def request(self, moment: TrainingProgress) -> None:
        if self._tables is not None:
            self._tables.request(moment.step)

    def advance(self, moment: TrainingProgress) -> None:
        self._now = moment
        if self._tables is not None:
            self._tables.refresh(moment.step)

    def draw(self, queries: Queries, count: int, generator: torch.Generator) -> Negatives:
        if self._model is None:
            raise SourceError(
                "negatives.source: kmas compares the relations of a model in training: use it in a training run"
            )
        return self.draw_by(lambda: self._similarity(queries), queries, count, generator)

    def _vectors(self) -> Tensor:
        assert self._model is not None
        return self._model.relations().cpu()

    def _similarity(self, queries: Queries) -> Tensor:
        directed = F.normalize(self._vectors(), dim=1)
        return directed[queries.relation % self.graph.relations] @ directed.T

    def hard(self, count: int) -> int:
        return round(hard_share(self._now.progress, self._options) * count)

    def draw_by(
        self, similarity: Callable[[], Tensor], queries: Queries, count: int, generator: torch.Generator
    ) -> Negatives:
        """Draw negatives with the latest table of similar relations, or with ``similarity()`` if there is none."""
        hard = self.hard(count)
        entities = torch.randint(self.entities, (len(queries), count), generator=generator)
        if hard:
            alike = self._alike(similarity, queries)
            entities[:, :hard] = self._hard(alike, queries, entities[:, :hard], generator)
        return Negatives(entities)

    def take_rejections(self) -> tuple[int, int]:
        counts = self._drawn, self._rejected
        self._drawn = self._rejected = 0
        return counts

    def _alike(self, similarity: Callable[[], Tensor], queries: Queries) -> Alike:
        own = queries.relation % self.graph.relations
        alike = None if self._tables is None else self._tables.latest(self._now.step, len(queries))
        if alike is not None:
            return alike[own]
        return most_alike(similarity(), own, self._usable, self._options)

    def _hard(self, alike: Alike, queries: Queries, instead: Tensor, generator: torch.Generator) -> Tensor:
        """Draw hard negatives int64 [b, count]; ``instead`` replaces known answers, and all negatives where no
        relation is usable."""
        relations = self.graph.relations
        side = torch.div(queries.relation, relations, rounding_mode="floor") * relations
        usable = alike.chances.sum(1) > 0
        chances = alike.chances.where(usable[:, None], 1.0)
        negatives = instead.clone()
        missing = usable[:, None].expand_as(negatives)
        for _ in range(1 + REDRAWS):
            choice = torch.multinomial(chances, negatives.shape[1], replacement=True, generator=generator)
            drawn = self._member(alike.relations.gather(1, choice) + side[:, None], generator)
            is_answer = known_facts(self.graph.known, queries.anchor, queries.relation, drawn, 1)
            is_answer |= drawn == queries.answer[:, None]
            negatives = torch.where(missing & ~is_answer, drawn, negatives)
            self._drawn += int(missing.sum())
            missing = missing & is_answer
            self._rejected += int(missing.sum())
            if not bool(missing.any()):
                break
        return negatives

    def _member(self, pool: Tensor, generator: torch.Generator) -> Tensor:
        """Return an answer of each of the relations int64 [b, n] in [0, 2R), uniformly; any entity for a relation
        without answers."""
        size = self._sizes[pool]
        uniform = torch.rand(pool.shape, generator=generator)
        place = (uniform * size).long().clamp_max(size - 1).clamp_min(0)
        return self._members[self._starts[pool] + place].long()
