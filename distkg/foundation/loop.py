"""Training loop of foundation models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distkg.config import RunConfig
from distkg.foundation.batches import FoundationBatch, FoundationBatches, negatives_for
from distkg.foundation.models import FoundationModel
from distkg.foundation.telemetry import HardnessTelemetry
from distkg.negatives import Negatives, Queries, TrainingProgress
from distkg.objectives import EXCLUDED, SAMPLED
from distkg.randomness import Purpose, mixed_seed, seed_dropout
from distkg.sharding.ranks import Ranks
from distkg.sharding.replicated_parameters import ReplicatedParameters
from distkg.training.clock import Clock
from distkg.training.learner import WINDOW


class FoundationLoop:
    """Training loop of a foundation model, with gradients summed over ranks."""

    def __init__(
        self,
        model: FoundationModel,
        batches: FoundationBatches,
        dense: ReplicatedParameters,
        config: RunConfig,
        rate: Callable[[int, int], float],
        ranks: Ranks,
        *,
        time_gone: Callable[[], float] = lambda: 0.0,
        telemetry: HardnessTelemetry | None = None,
        before_step: Callable[[TrainingProgress], None] = lambda moment: None,
    ) -> None:
        """
        Args:
            rate: function (epoch, step) → factor of the learning rate.
            time_gone: function that returns the used share of the run's time limit, the same on every rank.
            before_step: function called with the training progress before each step.
        """
        self.clock = Clock.of(ranks.device)
        self.bytes_exchanged = self.rows_fetched = self.steps = 0
        self.window = WINDOW
        self._model, self._batches, self._dense, self._ranks = model, batches, dense, ranks
        self._objective = SAMPLED[config.objective.name](config.objective)
        self._rate, self._seed, self._count = rate, config.train.seed, config.negatives.count
        self._epochs, self._time_gone = config.train.epochs, time_gone
        self._telemetry, self._before_step = telemetry, before_step
        self._loss, self._losses = torch.zeros((), device=ranks.device), 0

    def run(self, epoch: int, first: int, last: int, should_continue: Callable[[int], bool]) -> int:
        before = self._ranks.traffic.bytes
        self._model.train()
        next_check = first
        for step in range(first, last):
            if step == next_check:
                before = self._count_bytes(before)
                if not should_continue(step):
                    last = step
                    break
                next_check += self.window
            self._step(epoch, step)
        self._count_bytes(before)
        return last

    def _count_bytes(self, before: int) -> int:
        """Add the bytes that this rank has exchanged since it had exchanged ``before``; return how many it has now."""
        now = self._ranks.traffic.bytes
        self.bytes_exchanged += now - before
        return now

    def _step(self, epoch: int, step: int) -> None:
        moment = self._moment(epoch, step)
        with self.clock("data"):
            self._before_step(moment)
            batch = self._batches.batch(epoch, step)
        with self.clock("compute"):
            seed_dropout(self._ranks.device, mixed_seed(Purpose.DROPOUT, self._seed, epoch, step, self._ranks.rank))
            # The mean over the queries of all ranks, some of which may have one more than others.
            loss = self.loss(batch, moment) / (self._batches.queries / len(batch.queries))
            if loss.requires_grad:  # not if the step uses frozen parameters only
                loss.backward()
            self._loss += loss.detach()
            self._losses += 1
        with self.clock("exchange"):
            self._dense.reduce().wait()
        with self.clock("optimizer"):
            self._dense.step(self._rate(epoch, step))
        self.steps += 1

    def _moment(self, epoch: int, step: int) -> TrainingProgress:
        epochs = epoch + step / self._batches.steps
        progress = max(epochs / self._epochs, self._time_gone())
        return TrainingProgress(epochs, min(1.0, progress), epoch * self._batches.steps + step)

    def loss(self, asked: FoundationBatch, moment: TrainingProgress) -> Tensor:
        """Return the mean loss over the queries, plus the model's penalty."""
        model, device, queries = self._model, self._ranks.device, asked.queries
        anchor, relation = queries.anchor.to(device), queries.relation.to(device)
        whole = asked.learned.surroundings is None
        weight = asked.weight(device) if whole or model.relations_by_facts else None
        states = model.relation_states(asked.graph, anchor, relation, weight)
        negatives = negatives_for(asked, states, self._count, moment)
        candidates = candidates_of(queries, negatives).to(device)
        if whole:
            scores = model.scores(asked.graph, states, anchor, relation, weight, candidates)
        else:
            scores = self._scores_nearby(asked, states, candidates)
        if self._telemetry is not None:
            source, count = asked.learned.source, negatives.entities.shape[1]
            assert negatives.mask is not None
            self._telemetry.see(scores[:, 1 : 1 + count], negatives.mask, source.hard(self._count))
        loss, penalty = self._of_scores(scores, negatives), model.penalty(asked.graph, states, relation)
        return loss if penalty is None else loss + penalty

    def _scores_nearby(self, asked: FoundationBatch, states: Tensor, candidates: Tensor) -> Tensor:
        """Return scores of candidates int64 [b, m] on the sampled subgraph around them and the anchors."""
        device, surroundings = self._ranks.device, asked.learned.surroundings
        anchor, relation = asked.queries.anchor.to(device), asked.queries.relation.to(device)
        assert surroundings is not None
        seed = int(torch.randint(1 << 31, (), generator=asked.generator))
        part = surroundings.of(torch.cat([anchor, candidates.flatten()]), seed)
        weight = asked.weight(device, part.chosen)
        return self._model.scores(part, states, part.place(anchor), relation, weight, part.place(candidates))

    def _of_scores(self, scores: Tensor, negatives: Negatives) -> Tensor:
        """Return the mean loss of scores float32 [b, m] of ``candidates_of`` these negatives."""
        drawn_count, made, device = negatives.entities.shape[1], negatives.made, scores.device
        positive, (drawn, extra) = scores[:, 0], scores[:, 1:].tensor_split([drawn_count], dim=1)
        assert negatives.mask is not None
        loss = self._objective(positive, drawn.masked_fill(negatives.mask.to(device), EXCLUDED))
        if made is not None:
            some = ~made.mask.all(1).to(device)
            hard = extra.masked_fill(made.mask.to(device), EXCLUDED)
            loss = loss + made.weight * self._objective(positive, hard, made.growth.to(device)) * some
        return loss.mean()

    def pop_mean_loss(self) -> float:
        total = self._loss / max(self._losses, 1)
        self._ranks.all_reduce(total)
        self._loss, self._losses = torch.zeros_like(total), 0
        return float(total)


def candidates_of(queries: Queries, negatives: Negatives) -> Tensor:
    """Return the entities to score, int64 [b, m]: the answer, then drawn negatives, then generated ones."""
    made = [] if negatives.made is None or negatives.made.entities is None else [negatives.made.entities]
    return torch.cat([queries.answer[:, None], negatives.entities, *made], dim=1)
