"""Steps of a foundation model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distkg.config import RunConfig
from distkg.foundation import FoundationModel
from distkg.negatives import Moment
from distkg.negatives.kmas import Kmas
from distkg.objectives import EXCLUDED, SAMPLED
from distkg.sharding.ranks import Ranks
from distkg.training.clock import Clock
from distkg.training.dense import DenseParameters
from distkg.training.foundation_batches import Asked, FoundationBatches, negatives_for
from distkg.training.foundation_telemetry import KmasTelemetry
from distkg.training.randomness import Purpose, mixed_seed, seed_dropout

WINDOW = 8  # steps between questions whether to go on


class FoundationLoop:
    """Steps of a foundation model, gradients summed over ranks."""

    def __init__(
        self,
        model: FoundationModel,
        batches: FoundationBatches,
        dense: DenseParameters,
        config: RunConfig,
        rate: Callable[[int, int], float],
        ranks: Ranks,
        *,
        time_gone: Callable[[], float] = lambda: 0.0,
        telemetry: KmasTelemetry | None = None,
        before_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        """``rate(epoch, step)`` is a factor on the learning rate; ``time_gone()`` is the share of the run's time limit
        that is gone, the same on every rank; ``before_step`` hears the number of each step over all epochs."""
        self.clock = Clock()
        self.bytes_exchanged = self.steps = 0
        self._model, self._batches, self._dense, self._ranks = model, batches, dense, ranks
        self._objective = SAMPLED[config.objective.name](config.objective)
        self._rate, self._seed, self._count = rate, config.train.seed, config.negatives.count
        self._epochs, self._time_gone = config.train.epochs, time_gone
        self._telemetry, self._before_step = telemetry, before_step
        self._loss, self._losses = torch.zeros(()), 0

    def run(self, epoch: int, first: int, last: int, go_on: Callable[[int], bool]) -> int:
        before = self._ranks.traffic.bytes
        self._model.train()
        for step in range(first, last):
            if (step - first) % WINDOW == 0 and not go_on(step):
                last = step
                break
            self._step(epoch, step)
        self.bytes_exchanged += self._ranks.traffic.bytes - before
        return last

    def _step(self, epoch: int, step: int) -> None:
        moment = self._moment(epoch, step)
        with self.clock("data"):
            self._before_step(moment.step)
            asked = self._batches.batch(epoch, step)
        with self.clock("compute"):
            seed_dropout(self._ranks.device, mixed_seed(Purpose.DROPOUT, self._seed, epoch, step, self._ranks.rank))
            loss = self.loss(asked, moment)
            (loss / self._ranks.size).backward()
            self._loss += loss.detach() / self._ranks.size
            self._losses += 1
        with self.clock("exchange"):
            self._dense.reduce().wait()
        with self.clock("optimizer"):
            self._dense.step(self._rate(epoch, step))
        self.steps += 1

    def _moment(self, epoch: int, step: int) -> Moment:
        done = epoch + step / self._batches.steps
        progress = max(done / self._epochs, self._time_gone())
        return Moment(done, min(1.0, progress), epoch * self._batches.steps + step)

    def loss(self, asked: Asked, moment: Moment) -> Tensor:
        """Mean over the queries."""
        model, graph, queries = self._model, asked.graph, asked.queries
        query = queries.anchor, queries.relation
        states = model.relation_states(graph, *query, asked.weight)
        negatives = negatives_for(asked, states, self._count, moment)
        candidates = torch.cat([queries.answer[:, None], negatives.entities], dim=1)
        scores = model.scores(graph, states, *query, asked.weight, candidates)
        assert negatives.left_out is not None
        if self._telemetry is not None:
            source = asked.learned.source
            assert isinstance(source, Kmas)
            self._telemetry.see(scores[:, 1:], negatives.left_out, source.hard(self._count))
        negative = scores[:, 1:].masked_fill(negatives.left_out, EXCLUDED)
        return self._objective(scores[:, 0], negative).mean()

    def take_loss(self) -> float:
        total = self._loss / max(self._losses, 1)
        self._ranks.all_reduce(total)
        self._loss, self._losses = torch.zeros(()), 0
        return float(total)
