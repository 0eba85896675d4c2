"""First rows of the new entities of a grown graph: from their facts, or at random as in a new run.

Each training fact of a new entity is a query with this entity as its answer. The scorer says to which entity row the
query points (`Scorer.answer_rows`). Their mean alone is no trained row: an inner-product model has another scale, and
rows are trained away from queries that they do not answer. The map from such rows, summed and divided by the root of
their number, to trained rows is therefore fitted to old entities, by ridge regression. On CoDEx-S (ComplEx, dim 128, a
tenth of the entities new, seed 0, no training) test MRR is .403 for facts with new entities by this map, .328 by the
map of means, and .341 by a line for each column; for RotE (HaLE, dim 64) it is .376, .394 and .380, but .278, .225 and
.182 for facts of old entities, which new rows must not outrank. Noise of a hundredth of each column's spread tells
apart entities with equal facts.

New entities next to old ones come first, then those next to the first ones, and so on. Entities that no chain of facts
of old relations leads to start at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distkg.data.store.graph_store import Store
from distkg.data.store.manifest import Grown
from distkg.embedding.model import Model, initial_rows
from distkg.evaluation.score_blocks import evaluating
from distkg.graph.directions import both_directions
from distkg.kernels.gather_scatter import add_rows
from distkg.randomness import Purpose, stream
from distkg.sharding.checkpoint.stored_table import StoredTable
from distkg.training.family import FirstRows

MOST_LEVELS = 8
"""Longest chain of facts from an old entity to a new one whose row is made from its neighbours."""
FITTED = 4096
RIDGE = 0.01
NOISE = 0.01
_FACTS = 1 << 13  # whose anchors are read together
_BLOCK = 1 << 12

Queries = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Anchors, relations and answers: int64 [n] each."""


class GrownTable:
    """Entity rows of a grown graph: old ones in the files of a checkpoint, new ones in a file of their own.

    Attributes:
        old: rows of the old graph.
        new: float32 [N' - N, width], mapped from ``file``.
    """

    def __init__(self, old: StoredTable, grown: Grown, entities: int, file: Path) -> None:
        self.old, self.first = old, grown.entities
        shape = (entities - grown.entities, old.width)
        empty = torch.empty(shape)
        # An empty file cannot be mapped.
        self.new = torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape)) if shape[0] else empty

    def gather(self, ids: NDArray[np.int64]) -> Tensor:
        """Return the rows of any ids int64 [k]: float32 [k, width]."""
        is_new = ids >= self.first
        rows = torch.empty(len(ids), self.old.width)
        rows[torch.from_numpy(~is_new)] = self.old.gather(torch.from_numpy(ids[~is_new]))
        rows[torch.from_numpy(is_new)] = self.new[torch.from_numpy(ids[is_new] - self.first)]
        return rows


class RowMaker:
    """Maker of the first rows of new entities.

    Args:
        model: model of the grown graph, with trained parameters; its entity table is not read.
        table: rows of the grown graph; the new ones are overwritten.
        store: grown store.
        grown: part of the store that is old.
        seed: random seed.
        batch_size: number of queries computed together.
    """

    def __init__(self, model: Model, table: GrownTable, store: Store, grown: Grown, seed: int, batch_size: int) -> None:
        self._model, self._table, self._store, self._grown = model, table, store, grown
        self._seed, self._batch_size = seed, batch_size

    def fill(self, first_rows: FirstRows) -> int:
        """Fill the new rows, and return how many of them are made from neighbours."""
        first, entities, new = self._grown.entities, self._store.num_entities, self._table.new
        for start, rows in initial_rows(self._model.scorer, entities, first, entities, self._seed):
            new[start - first : start - first + len(rows)] = rows
        levels = self._levels() if first_rows == "neighbours" else np.zeros(0, np.int8)
        if not levels.any():
            return 0
        with evaluating(self._model):
            row_map = self._fit()
            generator = stream(Purpose.GROWTH, self._seed, 1)
            for level in range(1, int(levels.max()) + 1):
                self._fill_level(levels, level, row_map, generator)
        return int((levels > 0).sum())

    def _levels(self) -> NDArray[np.int8]:
        """Return the number of facts on the shortest chain from an old entity to each new one: int8 [N' - N], 0 if
        there is none of at most ``MOST_LEVELS``."""
        levels = np.zeros(len(self._table.new), np.int8)
        for level in range(1, MOST_LEVELS + 1):
            reached = np.zeros(len(levels), bool)
            for anchor, _, answer in self._queries(self._grown.triples.get("train", 0)):
                reached[answer[_known(anchor, levels, self._grown.entities)] - self._grown.entities] = True
            reached &= levels == 0
            if not reached.any():
                break
            levels[reached] = level
        return levels

    def _queries(self, first: int) -> Iterator[Queries]:
        """Yield the queries of old relations whose answers are new, from the training facts from row ``first`` on."""
        for anchor, relation, answer in self._all_queries(first):
            chosen = answer >= self._grown.entities
            yield anchor[chosen], relation[chosen], answer[chosen]

    def _all_queries(self, first: int) -> Iterator[Queries]:
        relations = self._store.num_relations
        for facts in self._store.iter_triples(["train"], _FACTS, first):
            anchor, relation, answer = both_directions(*facts.astype(np.int64).T, num_relations=relations)
            old = relation % relations < self._grown.relations  # rows of new relations say nothing yet
            yield anchor[old], relation[old], answer[old]

    def _pointed(self, anchor: NDArray[np.int64], relation: NDArray[np.int64]) -> Tensor:
        """Return the rows that queries point to: float32 [n, width]."""
        rows, ids = self._table.gather(anchor), torch.from_numpy(relation)
        blocks = zip(rows.split(self._batch_size), ids.split(self._batch_size), strict=True)
        parts = [self._model.scorer.answer_rows(part, self._model.query(part, each)) for part, each in blocks]
        return torch.cat([*parts, rows[:0]])

    def _fit(self) -> RowMap:
        """Fit the map to a sample of old entities."""
        old, rng = self._grown.entities, np.random.default_rng([self._seed, int(Purpose.GROWTH)])
        sample = np.sort(rng.choice(old, min(old, FITTED), replace=False))
        sums = torch.zeros(len(sample), self._table.old.width)
        counts = np.zeros(len(sample), np.int64)
        for anchor, relation, answer in self._all_queries(0):
            place = np.searchsorted(sample, answer).clip(max=max(len(sample) - 1, 0))
            chosen = (sample[place] == answer) & (anchor < old)
            add_rows(sums, torch.from_numpy(place[chosen]), self._pointed(anchor[chosen], relation[chosen]))
            counts += np.bincount(place[chosen], minlength=len(sample))
        sums = sums[torch.from_numpy(counts > 0)]
        counts, sample = counts[counts > 0], sample[counts > 0]
        trained = self._table.old.gather(torch.from_numpy(sample))
        return RowMap.fit(sums / torch.from_numpy(counts).sqrt()[:, None], trained)

    def _fill_level(self, levels: NDArray[np.int8], level: int, row_map: RowMap, generator: torch.Generator) -> None:
        new, first = self._table.new, self._grown.entities
        places = np.flatnonzero(levels == level)
        counts = np.zeros(len(levels), np.int64)
        for part in np.array_split(places, -(-len(places) // _BLOCK)):
            new[torch.from_numpy(part)] = 0
        below = np.where(levels < level, levels, 0)
        for anchor, relation, answer in self._queries(self._grown.triples.get("train", 0)):
            chosen = (levels[answer - first] == level) & _known(anchor, below, first)
            place = answer[chosen] - first
            add_rows(new, torch.from_numpy(place), self._pointed(anchor[chosen], relation[chosen]))
            counts += np.bincount(place, minlength=len(levels))
        for part in np.array_split(places, -(-len(places) // _BLOCK)):
            ids = torch.from_numpy(part)
            rows = row_map(new[ids] / torch.from_numpy(counts[part]).sqrt()[:, None])
            new[ids] = rows + torch.randn(rows.shape, generator=generator) * (NOISE * row_map.spread)


def _known(anchor: NDArray[np.int64], levels: NDArray[np.int8], first: int) -> NDArray[np.bool_]:
    """Return which anchors are old, or new ones with a level."""
    known: NDArray[np.bool_] = anchor < first
    is_new = ~known
    known[is_new] = levels[anchor[is_new] - first] > 0
    return known


@dataclass(frozen=True)
class RowMap:
    """Affine map from sums of the rows that an entity's queries point to, over √(number of queries), to its row.

    Attributes:
        weight: float32 [width, width].
        means, rows: float32 [width], averages of the fitted sums and of the fitted rows.
        spread: standard deviation of the fitted rows, float32 [width].
    """

    weight: Tensor
    means: Tensor
    rows: Tensor
    spread: Tensor

    def __call__(self, sums: Tensor) -> Tensor:
        """Map sums to rows: float32 [n, width]."""
        return self.rows + (sums - self.means) @ self.weight

    @classmethod
    def fit(cls, sums: Tensor, rows: Tensor) -> RowMap:
        """Fit by ridge regression to sums and trained rows, float32 [n, width]; without any, it is the identity."""
        width = rows.shape[1]
        if not len(rows):
            return cls(torch.eye(width), *torch.zeros(3, width))
        from_sums, to_rows = sums.double(), rows.double()
        mean, row = from_sums.mean(0), to_rows.mean(0)
        away = from_sums - mean
        products = away.T @ away
        ridge = max(RIDGE * float(products.diagonal().mean()), torch.finfo(torch.float32).tiny)
        weight = torch.linalg.solve(products + ridge * torch.eye(width), away.T @ (to_rows - row))
        return cls(weight.float(), mean.float(), row.float(), rows.std(0, correction=0))
