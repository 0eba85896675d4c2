"""Sources that find hard negatives with the model in training and cache them for some epochs.

Each key (a query, or an answer) has a row of candidates. A row older than ``refresh`` epochs is renewed from the
current model when a batch uses it, so the work spreads evenly over the steps. Memory: 4 bytes per candidate and key of
this rank's training triples.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distkg.data.store.known_answers import SORTED_QUERY_BYTES
from distkg.graph.directions import query_keys
from distkg.kernels.jit import kernel
from distkg.kernels.scores.similarity import SQUARED_L2
from distkg.negatives.base import (
    SOURCES,
    HostedPrecision,
    Negatives,
    NegativeSource,
    Queries,
    Requires,
    RunSizes,
    SourceError,
    SourceOptions,
    TrainingProgress,
)
from distkg.negatives.known_facts import known_facts
from distkg.negatives.model_based.nearest import NearestEntities, search_memory
from distkg.negatives.model_view import ModelView
from distkg.negatives.training_graph import TrainingGraph

_NEVER = -torch.inf
CANDIDATE_BYTES = 40  # of a candidate of a query in a draw: its id and marks of known answers, as they are looked up


class RememberedOptions(SourceOptions):
    refresh: float = Field(1.0, gt=0, description="Epochs after which cached candidates are renewed from the model.")


class RememberedSource(NegativeSource):
    """Base class of sources with a table of candidates by key. Subclasses define the key and the renewal of
    candidates."""

    Options = RememberedOptions
    needs = "a model"
    requires: ClassVar[Requires] = "queries"
    hosted_precision: ClassVar[HostedPrecision] = "float16"

    @classmethod
    def memory(cls, options: SourceOptions, sizes: RunSizes) -> int:
        width, known = cls.width(options), SORTED_QUERY_BYTES * sizes.queries
        table = RowsByKey.memory(-(-sizes.queries // sizes.workers), 4 * width)
        return known + table + sizes.drawn * width * CANDIDATE_BYTES

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        assert isinstance(options, RememberedOptions)
        self._refresh = options.refresh
        empty = torch.empty(0, self.width(options), dtype=torch.int32)
        self._table = RowsByKey(empty, fill=-1, refresh=options.refresh)
        self._model: ModelView | None = None
        self._now = TrainingProgress()

    @classmethod
    @abstractmethod
    def width(cls, options: SourceOptions) -> int:
        """Return the number of candidates per key."""

    @abstractmethod
    def key(self, queries: Queries) -> Tensor:
        """Return the cache key of each query: int64 [b]."""

    @abstractmethod
    def renew(self, model: ModelView, queries: Queries, before: Tensor, generator: torch.Generator) -> Tensor:
        """Return candidates int64 [b, width] of queries with different keys, -1 where there are fewer; collective.

        ``before`` int64 [b, width] are the previous candidates, -1 in a new row.
        """

    def attach(self, model: ModelView) -> None:
        self._model = model

    def advance(self, moment: TrainingProgress) -> None:
        self._now = moment

    def draw(self, queries: Queries, count: int, generator: torch.Generator) -> Negatives:
        """Draw from the candidates, known answers excluded; collective among the ranks of the model."""
        candidates, known = self._pools(queries, generator)
        uniforms = torch.randint(1 << 62, (len(queries), count), generator=generator)
        mask = torch.zeros(uniforms.shape, dtype=torch.bool)
        _choose(candidates.numpy(), known.numpy(), uniforms.numpy(), mask.numpy())
        return Negatives(uniforms, mask if bool(mask.any()) else None)

    def pool_sizes(self, queries: Queries) -> Tensor:
        return (~self._pools(queries, torch.Generator().manual_seed(0))[1]).sum(1)

    def _pools(self, queries: Queries, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return candidates int64 [b, width], and a mask bool [b, width] that is True for missing candidates and
        known answers."""
        if self._model is None:
            raise SourceError(
                f"{type(self).__name__} looks at the vectors of a model: use it in training, or on a trained model "
                "with `distkg negatives STORE --run RUN`"
            )
        rows = self._renewed_rows(self._model, queries, generator)
        candidates = self._table.values[rows].long()
        known = known_facts(self.graph.known, queries.anchor, queries.relation, candidates, 1)
        return candidates, known | (candidates < 0)

    def _renewed_rows(self, model: ModelView, queries: Queries, generator: torch.Generator) -> Tensor:
        """Return the row of each query's key, int64 [b], after renewing the rows that are too old."""
        table = self._table
        rows, old, first = table.look_up(self.key(queries), self._now.epochs)
        candidates = self.renew(model, queries[first], table.values[old].long(), generator)
        table.renew(old, candidates.int(), self._now.epochs)
        return rows


class RowsByKey:
    """Cache of rows by integer keys, each of which is due for renewal after some epochs.

    All keys are new in the first epoch of a training. To spread later renewals over time, the first renewal of each key
    comes early, by a number of epochs that depends on the key.

    Attributes:
        values: [rows, …], any dtype, in the order in which keys came.
    """

    @staticmethod
    def memory(rows: int, row_bytes: int) -> int:
        """Return the bytes of so many rows, at most: twice, while they are copied to a larger place."""
        return rows * 2 * (row_bytes + 24)

    def __init__(self, empty: Tensor, fill: float, refresh: float) -> None:
        """Create an empty cache.

        Args:
            empty: [0, …], gives shape and dtype of a row.
            fill: the values of a row until it is renewed.
            refresh: epochs until a row is due again.
        """
        self.values, self._fill, self._refresh = empty, fill, refresh
        self._place = empty  # its first rows are ``values``
        self._keys, self._row_of = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        self._renewed, self._share = torch.empty(0), torch.empty(0)

    def look_up(self, keys: Tensor, now: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the row of each key, int64 [b]; the rows that are new or due after ``now`` epochs, int64 [o]; and
        for each of these rows the index of one of its keys, int64 [o]."""
        unique, place = torch.unique(keys, return_inverse=True)
        self._make_rows(unique)
        rows = self._row_of[torch.searchsorted(self._keys, unique)]
        old = self._renewed[rows] <= now - self._refresh
        first = torch.empty(len(unique), dtype=torch.int64)
        first[place] = torch.arange(len(place))
        return rows[place], rows[old], first[old]

    def renew(self, rows: Tensor, values: Tensor, now: float) -> None:
        """Set rows int64 [o] to values [o, …]."""
        self.values[rows] = values
        new = self._renewed[rows] == _NEVER
        # Within an epoch, the random order of batches spreads renewals.
        early = max(0.0, self._refresh - 1) * self._share[rows]
        self._renewed[rows] = torch.where(new, now - early, now)

    def _make_rows(self, keys: Tensor) -> None:
        # torch.isin cannot use that keys are sorted.
        place = torch.searchsorted(self._keys, keys)
        new = keys[self._keys[place.clamp_max(len(self._keys) - 1)] != keys] if len(self._keys) else keys
        if not len(new):
            return
        before, count = len(self.values), len(self.values) + len(new)
        self._keys, order = torch.cat([self._keys, new]).sort()
        self._row_of = torch.cat([self._row_of, torch.arange(before, count)])[order]
        self._renewed = torch.cat([self._renewed, torch.full((len(new),), _NEVER)])
        self._share = torch.cat([self._share, _share(new)])
        if count > len(self._place):  # what is not yet used takes no memory
            self._place = self.values.new_empty(max(count, 2 * before), *self.values.shape[1:])
            self._place[:before] = self.values
        self._place[before:count] = self._fill
        self.values = self._place[:count]


def _share(keys: Tensor) -> Tensor:
    """Return a pseudo-random number in [0, 1) for each key int64 [b]: float32 [b] (Fibonacci hashing, Knuth 6.4)."""
    mixed = (keys % (1 << 32)) * 2654435769 % (1 << 32)
    return (mixed >> 8).float() / (1 << 24)


@kernel
def _choose(candidates: np.ndarray, known: np.ndarray, uniforms: np.ndarray, mask: np.ndarray) -> None:
    """Replace random numbers int64 [b, K] by candidates that are not known; mask rows without such candidates."""
    for i in range(uniforms.shape[0]):
        free = 0
        for c in range(candidates.shape[1]):
            free += not known[i, c]
        for k in range(uniforms.shape[1]):
            if free == 0:
                uniforms[i, k] = 0
                mask[i, k] = True
                continue
            place = uniforms[i, k] % free
            c = -1
            while place >= 0:
                c += 1
                place -= not known[i, c]
            uniforms[i, k] = candidates[i, c]


class NearestOptions(RememberedOptions):
    neighbours: int = Field(32, ge=1, description="Number of nearest entities to draw from.")


class NearestSource(RememberedSource):
    """Base class of sources whose candidates are the entities nearest to a vector."""

    Options = NearestOptions

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        self._nearest: NearestEntities | None = None
        self._rebuilt = -1.0

    @classmethod
    def memory(cls, options: SourceOptions, sizes: RunSizes) -> int:
        return super().memory(options, sizes) + search_memory(sizes.together, sizes.width, cls.width(options))

    @classmethod
    def width(cls, options: SourceOptions) -> int:
        assert isinstance(options, NearestOptions)
        return options.neighbours

    def _search(self, model: ModelView, vectors: Tensor, nearest: NearestEntities) -> Tensor:
        # All ranks have the same progress, so they rebuild their shards in the same step.
        if self._rebuilt < 0 or self._now.epochs - self._rebuilt >= self._refresh:
            nearest.rebuild()
            self._rebuilt = self._now.epochs
        return nearest.search(vectors, self._table.values.shape[1])


@SOURCES.register("nearest_neighbour")
class NearestNeighbour(NearestSource):
    """Entities whose vectors are nearest to the answer's by L2 distance (Kotnis, Nastase 2017)."""

    requires = "answers"

    def key(self, queries: Queries) -> Tensor:
        return queries.answer

    def renew(self, model: ModelView, queries: Queries, before: Tensor, generator: torch.Generator) -> Tensor:
        if self._nearest is None:
            self._nearest = NearestEntities(model, SQUARED_L2)
        nearest = self._search(model, model.candidates(queries.answer), self._nearest)
        return torch.where(nearest == queries.answer[:, None], -1, nearest)


@SOURCES.register("near_miss")
class NearMiss(NearestSource):
    """Entities that the model ranks highest as answers (Kotnis, Nastase 2017)."""

    def key(self, queries: Queries) -> Tensor:
        return query_keys(queries.anchor, queries.relation, self.graph.relations)

    def renew(self, model: ModelView, queries: Queries, before: Tensor, generator: torch.Generator) -> Tensor:
        if self._nearest is None:
            self._nearest = NearestEntities(model, model.similarity)
        return self._search(model, model.query(queries.anchor, queries.relation), self._nearest)


COMPETING_BYTES = 72  # of an entity that competes for the cache of a query: ids as they are sorted, score and noise


class CachedOptions(RememberedOptions):
    cache: int = Field(50, ge=1, description="Number of cached entities for each query, N₁ in the paper.")
    explored: int = Field(
        50, ge=1, description="Number of random entities that compete for the cache at each renewal, N₂."
    )


@SOURCES.register("cached")
class Cached(RememberedSource):
    """Entities that scored high among random ones (NSCaching, Zhang et al. 2019).

    At a renewal the cache and ``explored`` random entities are scored, and the new cache is drawn from them without
    replacement, in proportion to exp(score) (arXiv 1812.06410, algorithms 2 and 3).
    """

    Options = CachedOptions

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        assert isinstance(options, CachedOptions)
        self._explored = options.explored

    @classmethod
    def memory(cls, options: SourceOptions, sizes: RunSizes) -> int:
        assert isinstance(options, CachedOptions)
        competing = sizes.drawn * (options.cache + options.explored)
        rows = min(sizes.entities, competing) * 2 * 4 * sizes.width
        return super().memory(options, sizes) + competing * COMPETING_BYTES + rows

    @classmethod
    def width(cls, options: SourceOptions) -> int:
        assert isinstance(options, CachedOptions)
        return options.cache

    def key(self, queries: Queries) -> Tensor:
        return query_keys(queries.anchor, queries.relation, self.graph.relations)

    def renew(self, model: ModelView, queries: Queries, before: Tensor, generator: torch.Generator) -> Tensor:
        count, width = before.shape
        start = torch.randint(self.entities, before.shape, generator=generator)
        explored = torch.randint(self.entities, (count, self._explored), generator=generator)
        competing = torch.cat([torch.where(before < 0, start, before), explored], dim=1)
        ids, place = torch.unique(competing, return_inverse=True)
        rows, vectors = model.candidates(ids), model.query(queries.anchor, queries.relation)
        scores = model.similarity.indexed(vectors, rows, place.to(rows.device)).cpu()
        noise = torch.empty_like(scores).exponential_(generator=generator).log_()
        best = (scores - noise).topk(width, dim=1).indices  # Gumbel's trick: a draw in proportion to exp(score)
        return competing.gather(1, best)
