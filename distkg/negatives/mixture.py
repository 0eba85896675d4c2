"""Mixture of several sources, in shares that may change during training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from distkg.config import StrictModel
from distkg.negatives.base import (
    SOURCES,
    DrawRequest,
    Negatives,
    NegativeSource,
    Queries,
    RunSizes,
    SourceError,
    SourceOptions,
    TensorSource,
    TrainingProgress,
    check_source,
    depends_on_query,
    draws_on_tensors,
    make_source,
    source_memory,
)
from distkg.negatives.model_view import ModelView
from distkg.negatives.prefetch.pool_client import PoolClient
from distkg.negatives.training_graph import TrainingGraph
from distkg.randomness import GeneratorNumbers, RandomNumbers

Points = list[tuple[float, float]]


class MixturePart(StrictModel):
    """One source of a mixture."""

    source: str = Field(description="Name of the source.")
    weight: Points = Field(
        [(0.0, 1.0)],
        description="Weight of the source relative to the other parts: a number, or points [progress, weight] between "
        "which it changes linearly; progress is the completed share of train.epochs, in [0, 1].",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the source.")

    @field_validator("weight", mode="before")
    @classmethod
    def _number_or_points(cls, value: object) -> object:
        return [(0.0, value)] if isinstance(value, int | float) else value

    @field_validator("weight")
    @classmethod
    def _in_order(cls, points: Points) -> Points:
        places = [place for place, _ in points]
        if not points or places != sorted(places) or places[0] < 0 or places[-1] > 1:
            raise ValueError("must be a number or points [progress, weight] in order of progress, from 0 to 1")
        if min(weight for _, weight in points) < 0:
            raise ValueError("weights must not be negative")
        return points

    def weight_at(self, progress: float) -> float:
        places, weights = zip(*self.weight, strict=True)
        return float(np.interp(progress, places, weights))


MakePart = Callable[[int, MixturePart], NegativeSource]


class MixtureOptions(SourceOptions):
    parts: list[MixturePart] = Field(min_length=1, description="Sources with their weights.")


@SOURCES.register("mixture")
class Mixture(TensorSource):
    """Several sources in shares that may change during training.

    Each source draws its share of a query's negatives; the fractional remainders are rounded at random.
    """

    Options = MixtureOptions

    def __init__(self, graph: TrainingGraph, options: SourceOptions, make: MakePart | None = None) -> None:
        """Create the mixture; ``make(place, part)`` creates the source of a part, by default ``make_source``."""
        super().__init__(graph, options)
        assert isinstance(options, MixtureOptions)
        self._weights = [part.weight_at for part in options.parts]
        make = make or (lambda place, part: make_source(part.source, part.options, graph))
        self.sources = [make(place, part) for place, part in enumerate(options.parts)]
        self._progress = 0.0
        self.generates = any(SOURCES[part.source].generates for part in options.parts)

    @classmethod
    def check(cls, graph: TrainingGraph, options: SourceOptions) -> None:
        assert isinstance(options, MixtureOptions)
        for part in options.parts:
            check_source(part.source, part.options, graph)
        if sum(SOURCES[part.source].generates for part in options.parts) > 1:
            raise SourceError(
                "negatives.options: at most one part of a mixture may generate negatives (such as dans); it has several"
            )
        for place in sorted({0.0, 1.0, *(place for part in options.parts for place, _ in part.weight)}):
            if sum(part.weight_at(place) for part in options.parts) <= 0:
                raise SourceError(f"negatives.options: all weights of the mixture are 0 at progress {place:g}")

    @classmethod
    def memory(cls, options: SourceOptions, sizes: RunSizes) -> int:
        assert isinstance(options, MixtureOptions)
        return sum(source_memory(part.source, part.options, sizes) for part in options.parts)

    @classmethod
    def depends_on_query(cls, options: SourceOptions) -> bool:
        assert isinstance(options, MixtureOptions)
        return any(depends_on_query(part.source, part.options) for part in options.parts)

    @classmethod
    def draws_on_tensors(cls, options: SourceOptions) -> bool:
        assert isinstance(options, MixtureOptions)
        return all(draws_on_tensors(part.source, part.options) for part in options.parts)

    def attach(self, model: ModelView) -> None:
        for source in self.sources:
            source.attach(model)

    def advance(self, moment: TrainingProgress) -> None:
        self._progress = moment.progress
        for source in self.sources:
            source.advance(moment)

    def restrict(self, ranges: np.ndarray | None) -> None:
        for source in self.sources:
            source.restrict(ranges)

    def prefetch(self, coming: Sequence[DrawRequest]) -> None:
        shares = [self.shares(each.moment.progress) for each in coming]
        for place, source in enumerate(self.sources):
            parts = [(each, share[place]) for each, share in zip(coming, shares, strict=True) if share[place]]
            source.prefetch([replace(each, count=min(each.count, int(s * each.count) + 1)) for each, s in parts])

    def shares(self, progress: float) -> list[float]:
        """Return the share of each source at a progress of the training; shares sum to 1."""
        weights = [weight(progress) for weight in self._weights]
        return [weight / sum(weights) for weight in weights]

    def draw(self, queries: Queries, count: int, generator: torch.Generator) -> Negatives:
        draws = self._draws(count, GeneratorNumbers(generator))
        return self._joined([source.draw(queries, size, generator) for source, size in draws])

    def draw_on(self, queries: Queries, count: int, numbers: RandomNumbers) -> Negatives:
        draws = [(source.on_tensors(), size) for source, size in self._draws(count, numbers)]
        return self._joined([source.draw_on(queries, size, numbers) for source, size in draws if source is not None])

    def on_tensors(self) -> TensorSource | None:
        return None if any(source.on_tensors() is None for source in self.sources) else self

    def _draws(self, count: int, numbers: RandomNumbers) -> list[tuple[NegativeSource, int]]:
        """Return the sources that have a share now, and how many of ``count`` negatives each draws."""
        shares = self.shares(self._progress)
        ends = torch.tensor(shares, dtype=torch.float64).cumsum(0) * count
        # One random number for all ends: each source then gets its share on average, and the sum is always ``count``.
        cuts = (ends + numbers.fraction()).floor().long().clamp_max(count)
        cuts[-1] = count
        sizes = torch.diff(cuts, prepend=cuts.new_zeros(1)).tolist()
        # A source with a share draws even 0 negatives: its draw is collective, and other ranks may round differently.
        return [(source, size) for source, size, share in zip(self.sources, sizes, shares, strict=True) if share]

    @staticmethod
    def _joined(drawn: Sequence[Negatives]) -> Negatives:
        entities = torch.cat([negatives.entities for negatives in drawn], dim=1)
        generated = next((negatives.made for negatives in drawn if negatives.made is not None), None)
        if all(negatives.mask is None for negatives in drawn):
            return Negatives(entities, None, generated)
        mask = [_mask_of(negatives) for negatives in drawn]
        return Negatives(entities, torch.cat(mask, dim=1), generated)

    def pool_clients(self) -> Sequence[PoolClient[Any, Any]]:
        return [client for source in self.sources for client in source.pool_clients()]

    def parts(self) -> Sequence[NegativeSource]:
        return [part for source in self.sources for part in source.parts()]

    def pool_sizes(self, queries: Queries) -> Tensor:
        """Return the sizes of the largest pool among the sources: int64 [b]."""
        return torch.stack([source.pool_sizes(queries) for source in self.sources]).amax(0)


def _mask_of(negatives: Negatives) -> Tensor:
    if negatives.mask is not None:
        return negatives.mask
    return torch.zeros_like(negatives.entities, dtype=torch.bool)
