"""Training loop over the steps of an epoch: fetch rows, compute, push gradients, update.

Read ``_one_after_the_other`` first: it is the algorithm. ``_overlapped`` does the same work, but both exchanges run
while the step computes, so the rows of a step may lack the two latest updates. ``_with_composed_rows`` is for rows that
are functions of replicated parameters, whose gradients are complete when those of the rows have arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distkg.embedding.batches import Batch, Batches
from distkg.embedding.composed.table import ComposedTable
from distkg.embedding.model import TrainingModel
from distkg.embedding.steps.step import Step, StepResult
from distkg.embedding.windows import Windows
from distkg.kernels.gather_scatter import add_rows
from distkg.randomness import Purpose, mixed_seed, seed_dropout
from distkg.sharding.exchange import Route, plan_routes
from distkg.sharding.ranks import Work
from distkg.sharding.replicated_parameters import ReplicatedParameters
from distkg.sharding.table import GradientPush
from distkg.training.clock import Clock

WINDOW = 8  # steps whose ids are exchanged together, at most


@dataclass(frozen=True)
class RoutedBatch:
    """Batch of a step with what ranks have agreed on for its exchanges.

    Attributes:
        step: step of the epoch.
        batch: batch of this rank.
        route: route of the rows of its entities.
        relations: rows of relations that the step uses on any rank, as ``ReplicatedParameters.used_rows``.
    """

    step: int
    batch: Batch
    route: Route
    relations: Tensor | None


class Loop:
    """Training loop of this rank.

    Attributes:
        clock: seconds by phase.
        bytes_exchanged: bytes that this rank sent and received, estimated for reductions.
        rows_fetched: entity rows that this rank received from their owners.
        steps: number of steps done.
        window: number of steps between two calls of ``should_continue``; equal on all ranks.
    """

    def __init__(
        self,
        model: TrainingModel,
        batches: Batches,
        step: Step,
        dense: ReplicatedParameters,
        table_rate: float,
        rate: Callable[[int, int], float],
        seed: int,
        *,
        overlap: bool,
    ) -> None:
        """``rate(epoch, step)`` is a factor on ``table_rate`` and on the learning rate of replicated parameters."""
        self.clock = Clock.of(model.ranks.device)
        self.bytes_exchanged = self.rows_fetched = 0
        self.steps = 0
        self.window = WINDOW
        self._counted = replace(model.ranks.traffic)
        self._model, self._table, self._ranks = model, model.entities, model.ranks
        self._batches, self._step, self._dense = batches, step, dense
        self._windows = Windows(batches)
        self._table_rate, self._rate = table_rate, rate
        self._seed, self._overlap = seed, overlap
        self._loss = torch.zeros((), device=model.ranks.device)
        self._losses = 0

    def run(self, epoch: int, first: int, last: int, should_continue: Callable[[int], bool]) -> int:
        """Run the steps first … last - 1 of an epoch; all updates are applied on return.

        ``should_continue(step)`` is called before each window; if it returns False, the loop ends there. Return the
        next step.
        """
        self._next = first
        self._counted = replace(self._ranks.traffic)
        routed = self._routed(epoch, first, last, should_continue)
        if isinstance(self._table, ComposedTable):
            self._with_composed_rows(epoch, routed)
        elif self._overlap:
            self._overlapped(epoch, routed)
        else:
            self._one_after_the_other(epoch, routed)
        self._count_traffic()
        return self._next

    def pop_mean_loss(self) -> float:
        """Return and reset the mean loss per step over all ranks; collective."""
        total = self._loss / max(self._losses, 1)
        self._ranks.all_reduce(total)
        self._loss = torch.zeros_like(self._loss)
        self._losses = 0
        return float(total)

    def _routed(
        self, epoch: int, first: int, last: int, should_continue: Callable[[int], bool]
    ) -> Iterator[RoutedBatch]:
        low = first
        while low < last:
            self._count_traffic()
            if not should_continue(low):
                return
            high = min(low + self.window, last)
            with self.clock("data"):
                batches = self._windows.take(epoch, low, high, min(high + self.window, last))
            with self.clock("exchange"):
                routes = plan_routes([batch.ids for batch in batches], self._table.shards, self._ranks)
                relations = self._dense.used_rows([self._model.relation_row(batch.relation) for batch in batches])
            steps = list(map(RoutedBatch, range(low, high), batches, routes, relations))
            self._prefetch(epoch, steps[0])
            for routed, coming in zip(steps, [*steps[1:], None], strict=True):
                if coming is not None:
                    self._prefetch(epoch, coming)
                self._batches.begin(routed.batch)
                yield routed
            low = self._next = high

    def _prefetch(self, epoch: int, routed: RoutedBatch) -> None:
        """Announce the rows of a step to the table."""
        resident = self._batches.order.resident_rows(epoch, routed.step)
        if resident is None:
            self._table.prefetch(routed.route)
            return
        with self.clock("exchange"):
            self._table.storage.keep(*resident)

    def _count_traffic(self) -> None:
        """Add what was exchanged since the last call in this ``run``."""
        traffic = self._ranks.traffic
        self.bytes_exchanged += traffic.bytes - self._counted.bytes
        self.rows_fetched += traffic.rows - self._counted.rows
        self._counted = replace(traffic)

    def _one_after_the_other(self, epoch: int, routed: Iterator[RoutedBatch]) -> None:
        for each in routed:
            with self.clock("exchange"):
                rows = self._table.fetch(each.route).wait()
            computed, reducing = self._compute(epoch, each, rows)
            with self.clock("exchange"):
                departing = self._table.push(each.route, computed.rows)
            self._move_dense(epoch, each.step, reducing)
            self._apply(epoch, each.step, departing, computed.every_row)

    def _with_composed_rows(self, epoch: int, routed: Iterator[RoutedBatch]) -> None:
        for each in routed:
            with self.clock("exchange"):
                rows = self._table.fetch(each.route).wait()
            computed = self._step_result(epoch, each, rows)
            with self.clock("exchange"):
                departing = self._table.push(each.route, computed.rows)
            self._apply(epoch, each.step, departing, computed.every_row)
            with self.clock("exchange"):
                reducing = self._dense.reduce(each.relations)
            self._move_dense(epoch, each.step, reducing)

    def _overlapped(self, epoch: int, routed: Iterator[RoutedBatch]) -> None:
        current = next(routed, None)
        if current is None:
            return
        arriving = self._table.fetch(current.route)
        outstanding: tuple[int, GradientPush, Tensor | None] | None = None
        while current is not None:
            each = current
            with self.clock("exchange"):
                rows = arriving.wait()
            current = next(routed, None)
            if current is not None:
                with self.clock("exchange"):
                    arriving = self._table.fetch(current.route)
            computed, reducing = self._compute(epoch, each, rows)
            if outstanding is not None:
                self._apply(epoch, *outstanding)
            with self.clock("exchange"):
                outstanding = each.step, self._table.push(each.route, computed.rows), computed.every_row
            self._move_dense(epoch, each.step, reducing)
        if outstanding is not None:
            self._apply(epoch, *outstanding)

    def _compute(self, epoch: int, routed: RoutedBatch, rows: Tensor) -> tuple[StepResult, Work]:
        """Compute loss and gradients, and start the reduction of the gradients of replicated parameters."""
        computed = self._step_result(epoch, routed, rows)
        with self.clock("exchange"):
            return computed, self._dense.reduce(routed.relations)

    def _step_result(self, epoch: int, routed: RoutedBatch, rows: Tensor) -> StepResult:
        """Compute loss and gradients."""
        with self.clock("compute"):
            seed = mixed_seed(Purpose.DROPOUT, self._seed, epoch, routed.step, self._ranks.rank)
            seed_dropout(self._ranks.device, seed)
            computed = self._step(routed.batch, rows)
            self._loss += computed.loss
            self._losses += 1
            return computed

    def _move_dense(self, epoch: int, step: int, reducing: Work) -> None:
        with self.clock("exchange"):
            reducing.wait()
        with self.clock("optimizer"):
            self._dense.step(self._rate(epoch, step))

    def _apply(self, epoch: int, step: int, departing: GradientPush, every_row: Tensor | None) -> None:
        with self.clock("exchange"):
            ids, gradients = self._table.collect(departing)
        self.steps += 1
        rate = self._table_rate * self._rate(epoch, step)
        with self.clock("optimizer"):
            if every_row is None:
                self._table.update(ids, gradients, rate)
            else:
                add_rows(every_row, ids, gradients)
                self._table.update_all(every_row, rate)
