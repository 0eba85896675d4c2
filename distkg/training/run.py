"""A whole training as one rank sees it: epochs, validation, checkpoints, early stop, time limit, result."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
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
from distkg.training.provenance import KEY as PROVENANCE
from distkg.training.provenance import recorded_in, write_provenance
from distkg.training.record import Record, RunFolder, versions
from distkg.training.relation_prediction import RelationLearner, ranks_relations
from distkg.training.resume import Change, check_resume, compare
from distkg.training.schedule import Schedule
from distkg.training.services import ALONE, Services

REPORT_SECONDS = 10.0
VALIDATED = "evaluate.max_valid_triples"

Listener = Callable[[Record], None]


class DivergedError(ValueError):
    """The loss is no longer a finite number."""


def train_on_rank(
    config: RunConfig,
    run: Path,
    ranks: Ranks,
    *,
    resume: bool = False,
    accept_changes: bool = False,
    listener: Listener | None = None,
    services: Services = ALONE,
) -> Record:
    """Train, keep the best validated checkpoint, evaluate it; collective.

    Args:
        config: the run.
        run: its folder, seen by all ranks; rank 0 writes config.yaml, provenance.json, metrics.jsonl and result.json
            there.
        ranks: this process's place among the workers.
        resume: go on from the newest valid checkpoint in the folder, if there is one.
        accept_changes: go on although settings that steer the course of training have changed; the result lists them.
        listener: called on rank 0 with every line of metrics.jsonl.
        services: what others do for this rank.

    Returns:
        What result.json holds.

    Raises:
        DivergedError: the loss became infinite or NaN.
        ResumeError, StoreMismatchError: the folder holds a run that cannot go on with this configuration or store;
            nothing in it has changed.
    """
    keep_freed_memory()
    folder = RunFolder(run)
    if resume:
        check_resume(config, folder, accept_changes=accept_changes)
    training = Training(config, folder, ranks, listener, services)
    if resume:
        training.restore(accept_changes=accept_changes)
    if ranks.first:
        services.check_writer()
        write_provenance(folder.path, training.provenance)
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
        self.provenance = self.learner.provenance()
        self._check_writer = services.check_writer
        self.checkpoints = Checkpoints(folder.checkpoints, ranks, config.checkpoint.keep)
        self._started = self._reported = time.perf_counter()
        self._steps_reported, self._loss = 0, 0.0

    def train(self) -> None:
        """Epochs until the last, the time limit, or no gain for ``train.patience`` evaluations."""
        progress = self.progress
        while progress.epoch < self.config.train.epochs and not progress.stopped:
            # Each turn so makes a step or is stopped by the limit, which is looked at before steps are made.
            progress.check(self.learner.steps_per_epoch)
            every = self.config.checkpoint.every_steps or self.learner.steps_per_epoch
            last = min(self.learner.steps_per_epoch, (progress.step // every + 1) * every)
            before = progress.step
            progress.step = self.loop.run(progress.epoch, before, last, self._go_on)
            progress.steps += progress.step - before
            if progress.step < last:
                self._stop("time_limit_seconds")
            if progress.step == self.learner.steps_per_epoch:
                progress.epoch, progress.step = progress.epoch + 1, 0
                self._after_epoch()
            elif progress.stopped:
                self._validate_and_save()
            else:
                self._save(best=False)

    def _after_epoch(self) -> None:
        config, epoch = self.config, self.progress.epoch
        if not self._go_on(0):
            self._stop("time_limit_seconds")
        if epoch % config.evaluate.every == 0 or epoch == config.train.epochs or self.progress.stopped:
            self._validate_and_save()
        else:
            self._report()
            if epoch % config.checkpoint.every == 0:
                self._save(best=False)

    def _stop(self, key: str) -> None:
        self.progress.stop(key, getattr(self.config.train, key))

    def _validate_and_save(self) -> None:
        metrics = self.learner.validate()
        progress = self.progress
        gained = metrics is None or metrics["mrr"] > progress.best_mrr
        if metrics is not None:
            progress.evaluations_without_gain = 0 if gained else progress.evaluations_without_gain + 1
            progress.best_mrr = max(progress.best_mrr, metrics["mrr"])
            self.schedule.after_evaluation(progress.evaluations_without_gain)
        patience = self.config.train.patience
        if patience is not None and progress.evaluations_without_gain >= patience:
            self._stop("patience")
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
            self._check_writer()
            self.folder.report(line)
            if self.listener is not None:
                self.listener(line)

    def _triples_per_second(self, steps: int, seconds: float) -> float:
        triples = steps * self.learner.triples_per_epoch / self.learner.steps_per_epoch
        return round(triples / max(seconds, 1e-9), 1)

    def _bytes_per_step(self) -> int:
        return self.loop.bytes_exchanged // max(1, self.loop.steps)

    def _save(self, *, best: bool) -> None:
        if self.ranks.first:
            self._check_writer()
        counters = self._seconds(), self.schedule.halvings, self.config.sha256(), self.ranks.size
        progress = self.progress.saved(*counters, self.learner.steps_per_epoch)
        progress[PROVENANCE] = self.provenance.to_json()
        self.checkpoints.save(f"step-{self.progress.steps:09d}", self.learner.state(), progress, best=best)

    def restore(self, *, accept_changes: bool = False) -> None:
        """Go on from the newest valid checkpoint, if there is one; collective.

        Raises:
            ResumeError, StoreMismatchError: it was trained with other settings, or on another store.
        """
        name = self.checkpoints.newest()
        if name is None:
            return
        changes = self._changes_since(name, accept_changes)
        best_mrr = self._best_mrr_measured_now(changes)
        saved = self.checkpoints.load(name, self.learner.state())
        steps_per_epoch = self.learner.steps_per_epoch
        self.progress = Progress.restored(saved, self.config.train, steps_per_epoch)
        self.progress.accept(changes, steps_per_epoch)
        if best_mrr is not None:
            self.progress.best_mrr = best_mrr
        self.schedule.halvings = int(saved["halvings"])

    def _changes_since(self, checkpoint: str, accept_changes: bool) -> list[Change]:
        """Settings that are not those of a checkpoint."""
        recorded = recorded_in(self.checkpoints.describe(checkpoint).progress, f"the manifest of {checkpoint}")
        if recorded is None:  # of an earlier version
            return check_resume(self.config, self.folder, accept_changes=accept_changes)
        return compare(recorded, self.provenance, self.folder, accept_changes=accept_changes)

    def _best_mrr_measured_now(self, changes: Sequence[Change]) -> float | None:
        """Validation MRR of the best checkpoint on other triples than it was validated on, as later ones are compared
        with it; None where they are the same, or there is no such checkpoint. Overwrites the model."""
        changed = {change.key for change in changes}
        some = self.config.evaluate.max_valid_triples is not None
        if VALIDATED not in changed and not (some and "train.seed" in changed):
            return None
        best = self.checkpoints.best()
        if best is None:
            return None
        self.checkpoints.load(best, self.learner.model_state())
        metrics = self.learner.validate()
        return None if metrics is None else metrics["mrr"]

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
            "accepted_changes": self.progress.accepted_changes,
            "graphs": [graph.model_dump() for graph in self.provenance.graphs],
            **{key: value for key, value in evaluated.get("test", {}).items() if key.startswith("by_")},
            "graph": self.learner.describe(),
        }
        if self.ranks.first:
            self._check_writer()
            self.learner.leave_model(self.folder.path)
            self.folder.write_result(result)
        return result


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far (MB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
