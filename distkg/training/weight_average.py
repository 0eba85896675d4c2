"""Average of the weights of a model over the ends of epochs, kept beside the weights that are trained.

``ema`` is an exponential moving average, a ← d a + (1 − d) w with the decay d, which begins with the first weights w.
``mean`` is the running mean of all weights from an epoch on (stochastic weight averaging, Izmailov et al. 2018, arXiv
1803.05407). Both weigh whole epochs, so that rows which few steps change are averaged as all others, and an epoch costs
one pass over the table.

Validation ranks with both weights. A checkpoint holds those with the better MRR under the names of the model, so that
whoever reads it finds them, and the others under the same names with a prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from distkg.config import RunConfig
from distkg.randomness import Purpose, mixed_seed, seed_dropout
from distkg.sharding.checkpoint.checkpoint import State
from distkg.sharding.ranks import Ranks
from distkg.sharding.row_storage import RowStorage
from distkg.sharding.table import round_stochastically

Weights = Literal["raw", "average"]
"""Weights as they are trained, and their average."""

_ROWS = 1 << 12  # rows that are averaged or exchanged together; bounds float32 copies


class WeightAverage:
    """Average of the weights of a model on this rank.

    Attributes:
        count: number of epochs that were averaged; 0 if there is no average yet.
        last: number of epochs completed when the last one was averaged.
    """

    def __init__(self, config: RunConfig, model: State, make_storage: Callable[[], RowStorage], ranks: Ranks) -> None:
        """Allocate the average, if one is configured.

        Args:
            model: tensors of the model, which stay where they are.
            make_storage: function that returns storage for the average of sharded tensors.
        """
        settings = config.train
        self._kind, self._decay, self._from = settings.average, settings.average_decay, settings.average_from
        self._seed, self._ranks, self._model = settings.seed, ranks, model
        self.count = self.last = 0
        self._average = State({}, {}, model.rows, model.on_disk)
        if self.configured:
            storage = make_storage()
            sharded = {
                name: storage.zeros(len(rows), rows.shape[1], rows.dtype) for name, rows in model.sharded.items()
            }
            replicated = {name: torch.zeros_like(value) for name, value in model.replicated.items()}
            self._average = State(sharded, replicated, model.rows, model.on_disk)

    @property
    def configured(self) -> bool:
        """True if weights are averaged."""
        return self._kind != "none"

    def update(self, epochs: int) -> None:
        """Add the present weights, at the end of an epoch, if so many epochs were completed that they count.

        A run that was stopped before the validation of an epoch resumes at the end of this epoch, which is averaged.
        """
        if not self.configured or epochs < self._from or epochs <= self.last:
            return
        share = 1.0 if not self.count else 1 - self._decay if self._kind == "ema" else 1 / (self.count + 1)
        # The noise of the rounding of bfloat16 tables.
        seed_dropout(self._ranks.device, mixed_seed(Purpose.AVERAGE, self._seed, epochs, self._ranks.rank))
        for average, weights in self._pairs():
            _blend(average, weights, share)
        self.count, self.last = self.count + 1, epochs

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the averages with their weights, by blocks of rows of sharded tensors."""
        for name, average in self._average.sharded.items():
            yield from zip(average.split(_ROWS), self._model.sharded[name].split(_ROWS), strict=True)
        for name, average in self._average.replicated.items():
            yield average, self._model.replicated[name].detach()

    def swap(self) -> None:
        """Exchange the average and the weights of the model, in place."""
        for average, weights in self._pairs():
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Let the model have the averaged weights within the context."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def with_both(self, state: State, better: Weights) -> State:
        """Return the tensors of a checkpoint: those of ``state``, which has the model's, and both weights."""
        if not self.count:
            return state
        sharded = _both(state.sharded, self._average.sharded, better)
        replicated = _both(state.replicated, self._average.replicated, better)
        return State(sharded, replicated, state.rows, state.on_disk)

    def to_restore(self, state: State, better: Weights, count: int, last: int) -> State:
        """Return the tensors that a resumed run loads from a checkpoint, as ``with_both``; without a configured
        average, the raw weights.

        Args:
            better: better weights of the checkpoint.
            count, last: as the attributes, when the checkpoint was saved.
        """
        if self.configured:
            self.count, self.last = count, last
        if count and not self.configured and better == "average":
            return prefixed(state, self._model, "raw")
        return self.with_both(state, better)


def prefixed(state: State, model: State, weights: Weights) -> State:
    """Return a state in which the tensors of the model have the names of ``weights`` that are not the better ones."""
    sharded = {_named(name, weights, name in model.sharded): rows for name, rows in state.sharded.items()}
    replicated = {_named(name, weights, name in model.replicated): value for name, value in state.replicated.items()}
    return State(sharded, replicated, state.rows, state.on_disk)


def is_other(name: str) -> bool:
    """Return True if a checkpoint's tensor is of the weights with the lower MRR, which only a resumed run needs."""
    return name.startswith(("raw.", "average."))


def other(weights: Weights) -> Weights:
    """Return the weights that are not ``weights``."""
    return "raw" if weights == "average" else "average"


def _named(name: str, weights: Weights, of_model: bool) -> str:
    return f"{weights}.{name}" if of_model else name


def _both(raw: Mapping[str, Tensor], average: Mapping[str, Tensor], better: Weights) -> dict[str, Tensor]:
    """Return all tensors: of those that are averaged, the better one under its name, and the other with a prefix."""
    named = dict(raw)
    for name, values in average.items():
        first, second = (values, raw[name]) if better == "average" else (raw[name], values)
        named |= {name: first, f"{other(better)}.{name}": second}
    return named


def _blend(average: Tensor, weights: Tensor, share: float) -> None:
    """Move an average to the weights by a share of the difference, in place."""
    if share == 1 or not average.is_floating_point():
        average.copy_(weights)
    elif average.dtype == torch.float32:
        average.lerp_(weights, share)
    else:
        average.copy_(round_stochastically(average.float().lerp_(weights.float(), share)))
