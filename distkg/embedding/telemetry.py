"""Telemetry of negatives for metrics.jsonl: their scores, and their delivery by the actor pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distkg.embedding.batches import Batches, SampledBatches
from distkg.embedding.model import TrainingModel
from distkg.embedding.sharded_model_view import ShardedModelView
from distkg.negatives import Negatives, NegativeSource, Queries
from distkg.negatives.dans.curriculum import BAND_NAMES
from distkg.negatives.prefetch.pool_events import EventKind, PoolEvent, PoolEventLog
from distkg.negatives.prefetch.prefetch_stats import Deliveries
from distkg.sharding.ranks import Ranks
from distkg.training.run_dir import Record

COUNTED = ("delivered", "late", "old", "broken", "refused", "failed", "lost")
CONSEQUENCES: dict[EventKind, str] = {
    "failed": "negatives.pool.fallback draws instead; `failed` in metrics.jsonl counts the queries",
    "broken": "negatives.pool.fallback draws instead; `broken` in metrics.jsonl counts the queries",
    "lost": "It is being replaced, and negatives.pool.fallback draws its outstanding negatives; `lost` and `restarts` "
    "in metrics.jsonl count",
    "hung": "It was killed and is being replaced; `hung` and `restarts` in metrics.jsonl count",
}
PROBED = 64  # uniform negatives per query whose mean score is computed
QUANTILES = 33  # of the ages per worker, for the median over all workers


def negative_telemetry(batches: Batches, model: TrainingModel) -> NegativeTelemetry | None:
    """Return the telemetry if the negatives depend on queries, else None."""
    if isinstance(batches, SampledBatches) and batches.source.looks_at_queries:
        return NegativeTelemetry(batches, ShardedModelView(model))
    return None


class NegativeTelemetry:
    """Reporter of the scores and deliveries of negatives; collective."""

    def __init__(self, batches: SampledBatches, view: ShardedModelView) -> None:
        self._batches, self._view, self._ranks = batches, view, view.ranks
        self._clients = batches.source.pool_clients()
        self._hard_first = [part for part in batches.source.parts() if part.hard_first]
        self._reports = 0

    def report(self) -> Record:
        """Return the report over all ranks since the last call:

        - ``score``, ``uniform_score``: mean score of the latest negatives (only the generated ones, if the source
          generates; only the hard ones of kmas), and of uniform negatives for the same queries; ``band_scores``: mean
          score of the generated negatives by band;
        - for kmas: ``hard_share``, the current share of hard negatives, and ``rejected``, the share of hard negatives
          that were known answers and were drawn again;
        - ``false_negatives_removed``: number of negatives excluded as known facts, with ``negatives.filter``;
        - with an actor pool: ``delivered`` (share of queries), ``late``, ``old``, ``broken``, ``refused``, ``failed``,
          ``lost`` (queries for which the fallback source drew), ``age_median``, ``age_max`` (steps; None if nothing
          was delivered), ``restarts`` and ``hung`` (since the start), and ``warnings`` if there are any.
        """
        line: Record = {**self._scores(), "false_negatives_removed": self._removed()}
        line |= hardness_report(self._hard_first, self._batches.count, self._ranks) if self._hard_first else {}
        return line | (delivery_report(self._clients, self._ranks) if self._clients else {})

    def _removed(self) -> int:
        return int(sum_over(self._ranks, [self._batches.take_removed()])[0])

    def _scores(self) -> Record:
        self._reports += 1
        queries, negatives = self._probe()
        generator = torch.Generator().manual_seed(self._reports)
        uniform = torch.randint(self._batches.source.entities, (len(queries), PROBED), generator=generator)
        vectors = self._view.query(queries.anchor, queries.relation)
        anywhere = self._scored(vectors, uniform).mean(1)
        line: Record = {"uniform_score": self._mean(anywhere)}
        drawn = self._scored(vectors, negatives.entities)
        if not self._batches.source.generates:
            counted = torch.ones_like(drawn, dtype=torch.bool) if negatives.mask is None else ~negatives.mask
            if self._batches.source.hard_first:
                counted[:, self._batches.source.hard(self._batches.count) :] = False
            return {"score": self._mean(drawn[counted]), **line}
        generated = negatives.made
        # Scoring of entities is collective, so a rank without generated entities takes part with none.
        none = torch.empty(0, 1, dtype=torch.int64)
        entities = none if generated is None or generated.entities is None else generated.entities
        made_scores = self._scored(vectors[: len(entities)], entities)
        if generated is not None and generated.vectors is not None:
            places = torch.arange(generated.mask.numel(), device=vectors.device).view(generated.mask.shape)
            made_scores = self._view.similarity.indexed(
                vectors, generated.vectors.flatten(0, 1).to(vectors.device), places
            ).cpu()
        band = none if generated is None else generated.band[:, None].masked_fill(generated.mask, -1)
        bands = {name: self._mean(made_scores[band == place]) for place, name in enumerate(BAND_NAMES)}
        return {"score": self._mean(made_scores[band >= 0]), **line, "band_scores": bands}

    def _probe(self) -> tuple[Queries, Negatives]:
        """Return the first queries of the latest step and their negatives; empty before the first step."""
        if self._batches.latest is None:
            nothing = torch.empty(0, dtype=torch.int64)
            return Queries(nothing, nothing, nothing), Negatives(nothing.view(0, 1))
        drawn = self._batches.latest
        return drawn.queries.cpu(), drawn.negatives.cpu()

    def _mean(self, scores: Tensor) -> float | None:
        total, count = sum_over(self._ranks, [float(scores.sum()), scores.numel()])
        return ratio(total, count)

    def _scored(self, asked: Tensor, entities: Tensor) -> Tensor:
        """Score entities int64 [b, m] for query vectors: float32 [b, m]; collective."""
        ids, places = torch.unique(entities, return_inverse=True)
        rows = self._view.candidates(ids)
        return self._view.similarity.indexed(asked, rows, places.to(rows.device)).cpu()


class Counts(Protocol):
    """Client of an actor pool that counts deliveries and failures.

    Attributes:
        restarts: number of actors that were lost and replaced.
        hung: number of actors that this rank had killed because they did not answer.
        log: events of the pool.
    """

    log: PoolEventLog

    @property
    def restarts(self) -> int: ...

    @property
    def hung(self) -> int: ...

    def take_deliveries(self) -> Deliveries: ...


def delivery_report(counted: Sequence[Counts], ranks: Ranks) -> Record:
    """Return the keys ``delivered`` … ``warnings`` of ``NegativeTelemetry.report``; collective."""
    deliveries = [each.take_deliveries() for each in counted]
    warnings = [event for each in counted for event in each.log.take_warnings()]
    own = [sum(getattr(each, name) for each in deliveries) for name in COUNTED]
    *counts, hung, warned = sum_over(ranks, [*own, max(each.hung for each in counted), len(warnings)])
    median, oldest = _ages(deliveries, ranks)
    restarts = torch.tensor([max(each.restarts for each in counted)])
    ranks.all_reduce(restarts, "max")
    by_fallback = {name: int(count) for name, count in zip(COUNTED[1:], counts[1:], strict=True)}
    line: Record = {
        "delivered": ratio(counts[0], sum(counts)),
        **by_fallback,
        "age_median": median,
        "age_max": oldest,
    }
    line |= {"restarts": int(restarts), "hung": int(hung)}
    return line | ({"warnings": _warnings_of_all(warnings, counted, ranks)} if warned else {})


def _warnings_of_all(own: Sequence[PoolEvent], counted: Sequence[Counts], ranks: Ranks) -> list[str]:
    """Return the text of the first warning of each kind, and mute the kind on all ranks; collective."""
    first: dict[EventKind, str] = {}
    for rank in range(ranks.size):
        events = ranks.broadcast_object([(event.kind, event.text) for event in own], rank)
        assert isinstance(events, list)
        for kind, text in events:
            first.setdefault(kind, text)
    for each in counted:
        each.log.mark_said(list(first))
    return [f"{text}. {CONSEQUENCES[kind]}" for kind, text in first.items()]


def hardness_report(sources: Sequence[NegativeSource], count: int, ranks: Ranks) -> Record:
    """Return the keys ``hard_share`` and ``rejected`` of ``NegativeTelemetry.report`` for ``count`` negatives;
    collective."""
    drawn, rejected = zip(*(source.take_rejections() for source in sources), strict=True)
    drawn_by_all, rejected_by_all = sum_over(ranks, [sum(drawn), sum(rejected)])
    return {"hard_share": sources[0].hard(count) / count, "rejected": ratio(rejected_by_all, drawn_by_all)}


def sum_over(ranks: Ranks, numbers: Sequence[float]) -> list[float]:
    """Sum numbers over ranks; collective."""
    total = torch.tensor(numbers, dtype=torch.float64)
    ranks.all_reduce(total)
    sums: list[float] = total.tolist()
    return sums


def ratio(part: float, whole: float) -> float | None:
    """Return a share, rounded for reports; None if ``whole`` is 0."""
    return round(part / whole, 6) if whole else None


def _ages(taken: Sequence[Deliveries], ranks: Ranks) -> tuple[int | None, int | None]:
    ages = [age for each in taken for age in each.ages]
    own = np.quantile(ages, np.linspace(0, 1, QUANTILES)) if ages else np.full(QUANTILES, -1.0)
    all_ages = ranks.all_gather(torch.from_numpy(own)[None]).flatten()
    known_ages = all_ages[all_ages >= 0]
    return (int(known_ages.median()), int(known_ages.max())) if len(known_ages) else (None, None)
