"""A whole training as one rank sees it: epochs, validation, checkpoints, early stop, time limit, result."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

from distkg.config import RunConfig
from distkg.sharding.ranks import Ranks
from distkg.training.checkpoint import Checkpoints
from distkg.training.embedding import EmbeddingLearner
from distkg.training.foundation import FoundationLearner
from distkg.training.foundation_model import is_foundation
from distkg.training.learner import Learner
from distkg.training.memory import keep_freed_memory
from distkg.training.progress import Progress
from distkg.training.record import Record, RunFolder, versions
from distkg.training.relation_prediction import RelationLearner, ranks_relations
from distkg.training.schedule import Schedule
from distkg.training.services import ALONE, Services

REPORT_SECONDS = 10.0

Listener = Callable[[Record], None]


class DivergedError(ValueError):
    """The loss is no longer a finite number."""


def train_on_rank(
    config: RunConfig,
    run: Path,
    ranks: Ranks,
    *,
    resume: bool = False,
    listener: Listener | None = None,
    services: Services = ALONE,
) -> Record:
    """Train, keep the best validated checkpoint, evaluate it; collective.

    Args:
        config: the run.
        run: its folder, seen by all ranks; rank 0 writes config.yaml, metrics.jsonl and result.json there.
        ranks: this process's place among the workers.
        resume: go on from the newest valid checkpoint in the folder, if there is one.
        listener: called on rank 0 with every line of metrics.jsonl.
        services: what others do for this rank.

    Returns:
        What result.json holds.

    Raises:
        DivergedError: the loss became infinite or NaN.
    """
    keep_freed_memory()
    folder = RunFolder(run)
    training = Training(config, folder, ranks, listener, services)
    if resume:
        training.restore()
    if ranks.first:
        folder.write_config(config)
        folder.forget_after(training.progress.steps)
    ranks.barrier()
    training.train()
    return training.finish()


def make_learner(config: RunConfig, ranks: Ranks, schedule: Schedule, services: Services) -> Learner:
    """What the configuration asks to be trained."""
    if is_foundation(config):
        kind = RelationLearner if ranks_relations(config) else FoundationLearner
        return kind(config, ranks, schedule, services)
    return EmbeddingLearner(config, ranks, schedule, services)


class Training:
    """A run in progress on this rank."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, ranks: Ranks, listener: Listener | None, services: Services
    ) -> None:
        self.config, self.folder, self.ranks, self.listener = config, folder, ranks, listener
        self.progress = Progress()
        self.schedule = Schedule(config.optimizer, config.train.epochs)
        self.learner = make_learner(config, ranks, self.schedule, services)
        self.loop = self.learner.loop
        self.checkpoints = Checkpoints(folder.checkpoints, ranks, config.checkpoint.keep)
        self._started = self._reported = time.perf_counter()
        self._steps_reported, self._loss = 0, 0.0

    def train(self) -> None:
        """Epochs until the last, the time limit, or no gain for ``train.patience`` evaluations."""
        progress = self.progress
        while progress.epoch < self.config.train.epochs and not progress.stopped:
            every = self.config.checkpoint.every_steps or self.learner.steps_per_epoch
            last = min(self.learner.steps_per_epoch, (progress.step // every + 1) * every)
            before = progress.step
            progress.step = self.loop.run(progress.epoch, before, last, self._go_on)
            progress.steps += progress.step - before
            progress.stopped |= progress.step < last
            if progress.step == self.learner.steps_per_epoch:
                progress.epoch, progress.step = progress.epoch + 1, 0
                self._after_epoch()
            elif progress.stopped:
                self._validate_and_save()
            else:
                self._save(best=False)

    def _after_epoch(self) -> None:
        config, epoch = self.config, self.progress.epoch
        self.progress.stopped |= not self._go_on(0)
        if epoch % config.evaluate.every == 0 or epoch == config.train.epochs or self.progress.stopped:
            self._validate_and_save()
        else:
            self._report()
            if epoch % config.checkpoint.every == 0:
                self._save(best=False)

    def _validate_and_save(self) -> None:
        metrics = self.learner.validate()
        progress = self.progress
        gained = metrics is None or metrics["mrr"] > progress.best_mrr
        if metrics is not None:
            progress.evaluations_without_gain = 0 if gained else progress.evaluations_without_gain + 1
            progress.best_mrr = max(progress.best_mrr, metrics["mrr"])
            self.schedule.after_evaluation(progress.evaluations_without_gain)
        patience = self.config.train.patience
        progress.stopped |= patience is not None and progress.evaluations_without_gain >= patience
        self._report(metrics)
        self._save(best=gained)

    def _go_on(self, step: int) -> bool:
        """Asked before each window of steps and after an epoch: reports now and then; collective."""
        due = step > 0 and time.perf_counter() - self._reported > REPORT_SECONDS
        limit = self.config.train.time_limit_seconds
        # Decided by the first rank's clock: ranks that disagreed would wait for each other forever.
        decided = torch.tensor([self._seconds() / limit if limit else 0.0, due], dtype=torch.float32)
        self.schedule.time_gone, report = self.ranks.broadcast(decided.to(self.ranks.device)).tolist()
        if report:
            self._report(step=step)
        return self.schedule.time_gone < 1

    def _seconds(self) -> float:
        return self.progress.seconds + time.perf_counter() - self._started

    def _report(self, valid: dict[str, float] | None = None, step: int | None = None) -> None:
        """One line of metrics.jsonl; collective."""
        loss = self.loop.take_loss()
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} in epoch {self.progress.epoch}: lower optimizer.learning_rate, or raise "
                "regularizer.weight"
            )
        now = time.perf_counter()
        steps = self.loop.steps - self._steps_reported
        self._loss = loss if steps else self._loss  # a line may come right after another one
        phases = self.loop.clock.lap()
        epoch = self.progress.epoch + (self.progress.step if step is None else step) / self.learner.steps_per_epoch
        line: Record = {
            "time": round(self._seconds(), 3),
            "epoch": round(epoch, 4),
            "step": self.progress.steps if step is None else self.progress.steps + step - self.progress.step,
            "loss": self._loss,
            "learning_rate": self.config.optimizer.learning_rate * self.schedule.factor(epoch),
            "triples_per_second": round(
                steps * self.learner.triples_per_epoch / self.learner.steps_per_epoch / max(sum(phases.values()), 1e-9),
                1,
            ),
            "seconds": {phase: round(value, 4) for phase, value in phases.items()},
            "bytes_exchanged_per_step": self._bytes_per_step(),
            "peak_rss_mb": round(peak_rss_mb(), 1),
        }
        line |= self.learner.telemetry()
        if valid is not None:
            line["valid"] = valid
        self._reported, self._steps_reported = now, self.loop.steps
        if self.ranks.first:
            self.folder.report(line)
            if self.listener is not None:
                self.listener(line)

    def _triples_per_second(self, steps: int, seconds: float) -> float:
        triples = steps * self.learner.triples_per_epoch / self.learner.steps_per_epoch
        return round(triples / max(seconds, 1e-9), 1)

    def _bytes_per_step(self) -> int:
        return self.loop.bytes_exchanged // max(1, self.loop.steps)

    def _save(self, *, best: bool) -> None:
        progress = self.progress.saved(self._seconds(), self.schedule.halvings, self.config.sha256(), self.ranks.size)
        self.checkpoints.save(f"step-{self.progress.steps:09d}", self.learner.state(), progress, best=best)

    def restore(self) -> None:
        """Go on from the newest valid checkpoint, if there is one; collective."""
        name = self.checkpoints.newest()
        if name is None:
            return
        saved = self.checkpoints.load(name, self.learner.state())
        self.progress = Progress.restored(saved)
        self.schedule.halvings = int(saved["halvings"])

    def finish(self) -> Record:
        """Evaluate the best model on valid and test, write and return the result; collective."""
        seconds = self._seconds()
        self.checkpoints.wait()
        best = self.checkpoints.best()
        if best is not None:
            self.checkpoints.load(best, self.learner.model_state())
        evaluated = self.learner.evaluate()
        peaks = self.ranks.all_gather(torch.tensor([peak_rss_mb()], device=self.ranks.device)).tolist()
        done = self.progress.steps
        result: Record = {
            "metrics": {split: outcome["metrics"] for split, outcome in evaluated.items()},
            "train": {
                "triples_per_second": self._triples_per_second(done, seconds),
                "seconds": round(seconds, 3),
                "epochs": round(self.progress.epoch + self.progress.step / self.learner.steps_per_epoch, 4),
                "steps": done,
                "workers": self.ranks.size,
                "peak_rss_mb_per_worker": [round(peak, 1) for peak in peaks],
                "bytes_exchanged_per_step": self._bytes_per_step(),
            },
            "versions": versions(),
            "config_sha256": self.config.sha256(),
            "best_checkpoint": best,
            **{key: value for key, value in evaluated.get("test", {}).items() if key.startswith("by_")},
            "graph": self.learner.describe(),
        }
        if self.ranks.first:
            self.learner.leave_model(self.folder.path)
            self.folder.write_result(result)
        return result


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far (MB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
