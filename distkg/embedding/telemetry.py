"""What became of the negatives since the last report: how hard they were, and how they came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distkg.embedding.batches import Batches, SampledBatches
from distkg.embedding.model import Model
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
    "lost": "It is being replaced, and negatives.pool.fallback draws what it owes; `lost` and `restarts` in "
    "metrics.jsonl count",
    "hung": "It was killed and is being replaced; `hung` and `restarts` in metrics.jsonl count",
}
PROBED = 64  # queries and negatives of each, for their mean scores
QUANTILES = 33  # of each worker's ages, for the median over all


def negative_telemetry(batches: Batches, model: Model) -> NegativeTelemetry | None:
    """For a training whose negatives look at queries; None for others, whose negatives are all alike."""
    if isinstance(batches, SampledBatches) and batches.source.looks_at_queries:
        return NegativeTelemetry(batches, ShardedModelView(model))
    return None


class NegativeTelemetry:
    """Reports on the negatives of a training; collective."""

    def __init__(self, batches: SampledBatches, view: ShardedModelView) -> None:
        self._batches, self._view, self._ranks = batches, view, view.ranks
        self._clients = batches.source.pool_clients()
        self._hard_first = [part for part in batches.source.parts() if part.hard_first]
        self._reports = 0

    def report(self) -> Record:
        """Over all ranks, since the last call:

        - ``score``, ``uniform_score``: mean score of the latest negatives (of those made, where the source makes some;
          of the hard ones of kmas), and of uniform ones for the same queries; ``band_scores``: of those made, by band;
        - of kmas ``hard_share``, that of hard negatives at the end, and ``rejected``, the share of hard ones that were
          known answers and so drawn again;
        - ``false_negatives_removed``: drawn and left out as known facts, where ``negatives.filter`` looks for them;
        - where a pool draws them: ``delivered`` (share of queries), ``late``, ``old``, ``broken``, ``refused``,
          ``failed``, ``lost`` (queries for which the source that stands in drew), ``age_median``, ``age_max`` (steps;
          None where nothing was delivered), ``restarts`` and ``hung`` (so far), and ``warnings`` where there are some.
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
        asked = self._view.query(queries.anchor, queries.relation)
        anywhere = self._scored(asked, uniform).mean(1)
        line: Record = {"uniform_score": self._mean(anywhere)}
        drawn = self._scored(asked, negatives.entities)
        if not self._batches.source.generates:
            counted = torch.ones_like(drawn, dtype=torch.bool) if negatives.mask is None else ~negatives.mask
            if self._batches.source.hard_first:
                counted[:, self._batches.source.hard(self._batches.count) :] = False
            return {"score": self._mean(drawn[counted]), **line}
        made = negatives.made
        # Entities are scored by all ranks together, also where this one has none of them.
        none = torch.empty(0, 1, dtype=torch.int64)
        entities = none if made is None or made.entities is None else made.entities
        found = self._scored(asked[: len(entities)], entities)
        if made is not None and made.vectors is not None:
            places = torch.arange(made.mask.numel(), device=asked.device).view(made.mask.shape)
            found = self._view.similarity.indexed(asked, made.vectors.flatten(0, 1).to(asked.device), places).cpu()
        band = none if made is None else made.band[:, None].masked_fill(made.mask, -1)
        bands = {name: self._mean(found[band == place]) for place, name in enumerate(BAND_NAMES)}
        return {"score": self._mean(found[band >= 0]), **line, "band_scores": bands}

    def _probe(self) -> tuple[Queries, Negatives]:
        """Some of the latest queries and negatives; none where no step was made yet."""
        if self._batches.latest is None:
            nothing = torch.empty(0, dtype=torch.int64)
            return Queries(nothing, nothing, nothing), Negatives(nothing.view(0, 1))
        queries, negatives = self._batches.latest
        return queries[:PROBED], negatives.first(PROBED)

    def _mean(self, scores: Tensor) -> float | None:
        total, count = sum_over(self._ranks, [float(scores.sum()), scores.numel()])
        return ratio(total, count)

    def _scored(self, asked: Tensor, entities: Tensor) -> Tensor:
        """Scores float32 [b, m] of entities int64 [b, m]; collective."""
        ids, places = torch.unique(entities, return_inverse=True)
        rows = self._view.candidates(ids)
        return self._view.similarity.indexed(asked, rows, places.to(rows.device)).cpu()


class Counts(Protocol):
    """Whoever counts what became of negatives that others were to draw.

    Attributes:
        restarts: how often one of the others was lost and replaced.
        hung: how often this rank had one of the others killed because it did not answer.
        log: of what happened to them.
    """

    log: PoolEventLog

    @property
    def restarts(self) -> int: ...

    @property
    def hung(self) -> int: ...

    def take_deliveries(self) -> Deliveries: ...


def delivery_report(counted: Sequence[Counts], ranks: Ranks) -> Record:
    """Keys ``delivered`` … ``warnings`` of ``NegativeTelemetry.report``; collective."""
    taken = [each.take_deliveries() for each in counted]
    warnings = [event for each in counted for event in each.log.take_warnings()]
    own = [sum(getattr(each, name) for each in taken) for name in COUNTED]
    *counts, hung, warned = sum_over(ranks, [*own, max(each.hung for each in counted), len(warnings)])
    median, oldest = _ages(taken, ranks)
    restarts = torch.tensor([max(each.restarts for each in counted)], device=ranks.device)
    ranks.all_reduce(restarts, "max")
    filled_in = {name: int(count) for name, count in zip(COUNTED[1:], counts[1:], strict=True)}
    line: Record = {"delivered": ratio(counts[0], sum(counts)), **filled_in, "age_median": median, "age_max": oldest}
    line |= {"restarts": int(restarts), "hung": int(hung)}
    return line | ({"warnings": _warnings_of_all(warnings, counted, ranks)} if warned else {})


def _warnings_of_all(own: Sequence[PoolEvent], counted: Sequence[Counts], ranks: Ranks) -> list[str]:
    """Texts of the first warning of each kind, of which no rank warns again; collective."""
    first: dict[EventKind, str] = {}
    for rank in range(ranks.size):
        said = ranks.broadcast_object([(event.kind, event.text) for event in own], rank)
        assert isinstance(said, list)
        for kind, text in said:
            first.setdefault(kind, text)
    for each in counted:
        each.log.mark_said(list(first))
    return [f"{text}. {CONSEQUENCES[kind]}" for kind, text in first.items()]


def hardness_report(sources: Sequence[NegativeSource], count: int, ranks: Ranks) -> Record:
    """Keys ``hard_share`` and ``rejected`` of ``NegativeTelemetry.report``, of ``count`` negatives; collective."""
    drawn, rejected = zip(*(source.take_rejections() for source in sources), strict=True)
    drawn_by_all, rejected_by_all = sum_over(ranks, [sum(drawn), sum(rejected)])
    return {"hard_share": sources[0].hard(count) / count, "rejected": ratio(rejected_by_all, drawn_by_all)}


def sum_over(ranks: Ranks, numbers: Sequence[float]) -> list[float]:
    """Sums of numbers over ranks; collective."""
    total = torch.tensor(numbers, dtype=torch.float64, device=ranks.device)
    ranks.all_reduce(total)
    found: list[float] = total.tolist()
    return found


def ratio(part: float, whole: float) -> float | None:
    """A share for reports; None of nothing."""
    return round(part / whole, 6) if whole else None


def _ages(taken: Sequence[Deliveries], ranks: Ranks) -> tuple[int | None, int | None]:
    ages = [age for each in taken for age in each.ages]
    own = np.quantile(ages, np.linspace(0, 1, QUANTILES)) if ages else np.full(QUANTILES, -1.0)
    found = ranks.all_gather(torch.from_numpy(own).to(ranks.device)[None]).flatten()
    seen = found[found >= 0]
    return (int(seen.median()), int(seen.max())) if len(seen) else (None, None)
