"""What became of the negatives since the last report: how hard they were, and how they came."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distkg.negatives.ahead import Deliveries, ahead_sources
from distkg.training.batches import Batches, SampledBatches
from distkg.training.live import ModelView
from distkg.training.model import Model
from distkg.training.record import Record

PROBED = 64  # queries and negatives of each, for their mean scores
QUANTILES = 33  # of each worker's ages, for the median over all


def negative_telemetry(batches: Batches, model: Model) -> NegativeTelemetry | None:
    """For a training whose negatives look at queries; None for others, whose negatives are all alike."""
    if isinstance(batches, SampledBatches) and batches.source.looks_at_queries:
        return NegativeTelemetry(batches, ModelView(model))
    return None


class NegativeTelemetry:
    """Reports on the negatives of a training; collective."""

    def __init__(self, batches: SampledBatches, view: ModelView) -> None:
        self._batches, self._view, self._ranks = batches, view, view.ranks
        self._ahead = ahead_sources(batches.source)
        self._reports = 0

    def report(self) -> Record:
        """Over all ranks, since the last call:

        - ``score``, ``uniform_score``: mean score of the latest negatives, and of uniform ones for the same queries;
        - ``false_negatives_removed``: drawn and left out as known facts, where ``negatives.filter`` looks for them;
        - where a pool draws them: ``delivered`` (share of queries), ``late``, ``old``, ``broken``, ``refused``
          (queries for which the source that stands in drew), ``age_median``, ``age_max`` (steps; None where nothing
          was delivered) and ``restarts`` (so far).
        """
        line: Record = {**self._scores(), "false_negatives_removed": self._removed()}
        return line | (self._deliveries() if self._ahead else {})

    def _removed(self) -> int:
        return int(self._sum([self._batches.take_removed()])[0])

    def _scores(self) -> Record:
        queries, entities, left_out = self._batches.latest
        queries, entities, left_out = queries[:PROBED], entities[:PROBED, :PROBED], left_out[:PROBED, :PROBED]
        self._reports += 1
        generator = torch.Generator().manual_seed(self._reports)
        uniform = torch.randint(self._batches.source.entities, entities.shape, generator=generator)
        asked = self._view.query(queries.anchor, queries.relation)
        drawn, anywhere = self._scored(asked, entities)[~left_out], self._scored(asked, uniform)
        sums = self._sum([float(drawn.sum()), drawn.numel(), float(anywhere.sum()), anywhere.numel()])
        return {"score": _ratio(sums[0], sums[1]), "uniform_score": _ratio(sums[2], sums[3])}

    def _scored(self, asked: Tensor, entities: Tensor) -> Tensor:
        ids, places = torch.unique(entities, return_inverse=True)
        rows = self._view.candidates(ids)
        return self._view.similarity.indexed(asked, rows, places.to(rows.device)).cpu()

    def _deliveries(self) -> Record:
        taken = [source.take_deliveries() for source in self._ahead]
        names = ("delivered", "late", "old", "broken", "refused")
        counts = self._sum([sum(getattr(each, name) for each in taken) for name in names])
        median, oldest = self._ages(taken)
        restarts = torch.tensor([max(source.restarts for source in self._ahead)], device=self._ranks.device)
        self._ranks.all_reduce(restarts, "max")
        filled_in = {name: int(count) for name, count in zip(names[1:], counts[1:], strict=True)}
        share = _ratio(counts[0], sum(counts))
        return {"delivered": share, **filled_in, "age_median": median, "age_max": oldest, "restarts": int(restarts)}

    def _ages(self, taken: Sequence[Deliveries]) -> tuple[int | None, int | None]:
        ages = [age for each in taken for age in each.ages]
        own = np.quantile(ages, np.linspace(0, 1, QUANTILES)) if ages else np.full(QUANTILES, -1.0)
        found = self._ranks.all_gather(torch.from_numpy(own).to(self._ranks.device)[None]).flatten()
        seen = found[found >= 0]
        return (int(seen.median()), int(seen.max())) if len(seen) else (None, None)

    def _sum(self, numbers: Sequence[float]) -> list[float]:
        total = torch.tensor(numbers, dtype=torch.float64, device=self._ranks.device)
        self._ranks.all_reduce(total)
        found: list[float] = total.tolist()
        return found


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None
