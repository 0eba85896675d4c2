"""What became of the negatives since the last report: how hard they were, and how they came."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distkg.negatives import Negatives, Queries
from distkg.negatives.ahead import Deliveries, ahead_sources
from distkg.negatives.dans.curriculum import BAND_NAMES
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

        - ``score``, ``uniform_score``: mean score of the latest negatives (of those made, where the source makes some),
          and of uniform ones for the same queries; ``band_scores``: of those made, by band;
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
        self._reports += 1
        queries, negatives = self._probe()
        generator = torch.Generator().manual_seed(self._reports)
        uniform = torch.randint(self._batches.source.entities, (len(queries), PROBED), generator=generator)
        asked = self._view.query(queries.anchor, queries.relation)
        anywhere = self._scored(asked, uniform).mean(1)
        line: Record = {"uniform_score": self._mean(anywhere)}
        drawn = self._scored(asked, negatives.entities)
        if not self._batches.source.makes:
            left_out = negatives.left_out
            return {"score": self._mean(drawn if left_out is None else drawn[~left_out]), **line}
        made = negatives.made
        # Entities are scored by all ranks together, also where this one has none of them.
        none = torch.empty(0, 1, dtype=torch.int64)
        entities = none if made is None or made.entities is None else made.entities
        found = self._scored(asked[: len(entities)], entities)
        if made is not None and made.vectors is not None:
            places = torch.arange(made.left_out.numel(), device=asked.device).view(made.left_out.shape)
            found = self._view.similarity.indexed(asked, made.vectors.flatten(0, 1).to(asked.device), places).cpu()
        band = none if made is None else made.band[:, None].masked_fill(made.left_out, -1)
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
        total, count = self._sum([float(scores.sum()), scores.numel()])
        return _ratio(total, count)

    def _scored(self, asked: Tensor, entities: Tensor) -> Tensor:
        """Scores float32 [b, m] of entities int64 [b, m]; collective."""
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
