"""Steps of a foundation model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distkg.config import RunConfig
from distkg.foundation import FoundationModel
from distkg.negatives import Moment
from distkg.objectives import EXCLUDED, SAMPLED
from distkg.sharding.ranks import Ranks
from distkg.training.clock import Clock
from distkg.training.dense import DenseParameters
from distkg.training.foundation_batches import Asked, FoundationBatches, negatives_for
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
    ) -> None:
        self.clock = Clock()
        self.bytes_exchanged = self.steps = 0
        self._model, self._batches, self._dense, self._ranks = model, batches, dense, ranks
        self._objective = SAMPLED[config.objective.name](config.objective)
        self._rate, self._seed, self._count = rate, config.train.seed, config.negatives.count
        self._epochs = config.train.epochs
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
        with self.clock("data"):
            asked = self._batches.batch(epoch, step)
        with self.clock("compute"):
            seed_dropout(self._ranks.device, mixed_seed(Purpose.DROPOUT, self._seed, epoch, step, self._ranks.rank))
            loss = self.loss(asked, self._moment(epoch, step))
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
        return Moment(done, min(1.0, done / self._epochs), epoch * self._batches.steps + step)

    def loss(self, asked: Asked, moment: Moment) -> Tensor:
        """Mean over the queries."""
        model, queries, whole = self._model, asked.queries, asked.learned.surroundings is None
        weight = asked.weight() if whole or model.relations_by_facts else None
        states = model.relation_states(asked.graph, queries.anchor, queries.relation, weight)
        negatives = negatives_for(asked, states, self._count, moment)
        made = negatives.made
        candidates = torch.cat([queries.answer[:, None], negatives.entities], dim=1)
        if made is not None and made.entities is not None:
            candidates = torch.cat([candidates, made.entities], dim=1)
        if whole:
            scores = model.scores(asked.graph, states, queries.anchor, queries.relation, weight, candidates)
        else:
            scores = self._scores_nearby(asked, states, candidates)
        positive, (drawn, extra) = scores[:, 0], scores[:, 1:].tensor_split([negatives.entities.shape[1]], dim=1)
        assert negatives.left_out is not None
        loss = self._objective(positive, drawn.masked_fill(negatives.left_out, EXCLUDED))
        if made is not None:
            some = ~made.left_out.all(1)
            hard = self._objective(positive, extra.masked_fill(made.left_out, EXCLUDED), made.growth)
            loss = loss + made.weight * hard * some
        return loss.mean()

    def _scores_nearby(self, asked: Asked, states: Tensor, candidates: Tensor) -> Tensor:
        """Of candidates int64 [b, m], from the facts around them and the anchors."""
        queries, surroundings = asked.queries, asked.learned.surroundings
        assert surroundings is not None
        seed = int(torch.randint(1 << 31, (), generator=asked.generator))
        part = surroundings.of(torch.cat([queries.anchor, candidates.flatten()]), seed)
        weight, anchor = asked.weight(part.chosen), part.place(queries.anchor)
        return self._model.scores(part, states, anchor, queries.relation, weight, part.place(candidates))

    def take_loss(self) -> float:
        total = self._loss / max(self._losses, 1)
        self._ranks.all_reduce(total)
        self._loss, self._losses = torch.zeros(()), 0
        return float(total)
