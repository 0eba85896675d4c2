"""Training run on one rank: epochs, validation, checkpoints, early stopping, time limit, result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from pydantic import JsonValue

from distkg.config import RunConfig
from distkg.data.storage.location import make_folder
from distkg.data.storage.working_copy import flush
from distkg.evaluation.metrics import Metrics
from distkg.evaluation.score_blocks import ScoreError
from distkg.process_memory import keep_freed_memory, peak_rss_mb
from distkg.sharding.checkpoint.checkpoint import CheckpointError, Checkpoints, NonFiniteError
from distkg.sharding.ranks import Ranks
from distkg.training.family import family_of
from distkg.training.learner import WINDOW, Division
from distkg.training.observer import RankReport
from distkg.training.precision import missing_precisions
from distkg.training.progress import Progress
from distkg.training.provenance import KEY as PROVENANCE
from distkg.training.provenance import recorded_in, write_provenance
from distkg.training.resume import Change, check_resume, compare
from distkg.training.run_dir import Record, RunFolder, versions
from distkg.training.schedule import Schedule
from distkg.training.services import LOCAL_SERVICES, Services
from distkg.training.stopping import StopAsked
from distkg.training.weight_average import WeightAverage, Weights, other, prefixed

REPORT_SECONDS = 10.0
VALIDATED = "evaluate.max_valid_triples"
WINDOW_SECONDS = 0.5

Listener = Callable[[Record], None]


class DivergedError(ValueError):
    """Error of a loss, score or state that is no longer finite; the message names the last sound checkpoint."""


def train_on_rank(
    config: RunConfig,
    run: Path,
    ranks: Ranks,
    *,
    resume: bool = False,
    accept_changes: bool = False,
    listener: Listener | None = None,
    services: Services = LOCAL_SERVICES,
) -> Record:
    """Train, keep the best validated checkpoint, and evaluate it; collective.

    Args:
        config: configuration of the run.
        run: run folder, visible to all ranks; rank 0 writes config.yaml, provenance.json, metrics.jsonl and
            result.json there.
        ranks: this process's rank among the workers.
        resume: continue from the newest valid checkpoint in the folder, if there is one.
        accept_changes: continue although settings with ``resume: course`` have changed; the result lists them.
        listener: function called on rank 0 with every line of metrics.jsonl.
        services: services that the cluster provides to this rank.

    Returns:
        The content of result.json; ``{"stopped": steps}`` if ``services.stop`` requested a stop.

    Raises:
        DivergedError: the loss, a score or the state became infinite or NaN; checkpoints hold the last finite state.
        CheckpointError: every checkpoint is damaged, or the checkpoints of the run were deleted.
        ResumeError, StoreMismatchError: the run in the folder cannot continue with this configuration or store; the
            folder is unchanged.
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
        make_folder(folder.path, private=config.private)
        write_provenance(folder.path, training.provenance)
        folder.write_config(config)
        progress = training.progress
        folder.forget_after(progress.steps, validated=progress.validated == progress.steps)
    ranks.barrier()
    notices = missing_precisions(config, ranks)
    if ranks.first:
        for text in notices:
            folder.notice(text)
    try:
        training.train()
        result = training.finish()
        flush(folder.path)
        return result
    except StopAsked:
        steps = training.progress.steps
        if ranks.first and services.stop.leaving:
            folder.notice(f"{services.stop.leaving}: saved a checkpoint at step {steps:,}, continuing on other nodes")
        return {"stopped": steps}


class Training:
    """Training run in progress on this rank."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, ranks: Ranks, listener: Listener | None, services: Services
    ) -> None:
        self.config, self.folder, self.ranks, self.listener = config, folder, ranks, listener
        self.progress = Progress()
        self.schedule = Schedule(config.optimizer, config.train.epochs)
        self.learner = family_of(config).learner(config, ranks, self.schedule, services)
        self.loop = self.learner.loop
        learner = self.learner
        self.average = WeightAverage(config, learner.model_state(), learner.storage, ranks)
        steps, items = learner.steps_per_epoch, learner.items_per_epoch
        self.division = Division(ranks.size, steps, items, config.train.seed, config.train.resident_share)
        self.provenance = self.learner.provenance()
        self._check_writer, self._observer = services.check_writer, services.observer
        self.checkpoints = Checkpoints(
            folder.checkpoints,
            ranks,
            config.checkpoint.keep,
            notice=folder.notice,
            on_commit=self._note_checkpoint,
        )
        self._best_at = -1  # steps of the checkpoint that is marked best
        self._started = self._reported = time.perf_counter()
        self._steps_reported, self._loss = 0, 0.0
        self._bytes_reported = self._rows_reported = 0
        self.stop, self._stopping = services.stop, False
        self._saved: tuple[int, int] | None = None  # epoch and step of the newest checkpoint
        self._asked_at = self._started, 0

    def train(self) -> None:
        """Train until the last epoch, the time limit, or ``train.patience`` evaluations without a better MRR.

        Raises:
            StopAsked: on every rank, after a checkpoint.
        """
        progress = self.progress
        self.stop.unsaved = True
        while progress.epoch < self.config.train.epochs and not progress.stopped:
            # Every iteration makes a step, ends an epoch, or stops at the time limit, so this loop terminates.
            progress.check(self.learner.steps_per_epoch)
            every = self.config.checkpoint.every_steps or self.learner.steps_per_epoch
            last = min(self.learner.steps_per_epoch, (progress.step // every + 1) * every)
            before = progress.step
            progress.step = self.loop.run(progress.epoch, before, last, self._should_continue)
            progress.steps += progress.step - before
            if self._stopping:
                self._save_and_leave()
            if progress.step < last:
                self._stop("time_limit_seconds")
            if progress.step == self.learner.steps_per_epoch:
                progress.end_epoch()
                self.average.update(progress.epoch)
                self._after_epoch()
            elif progress.stopped:
                self._validate_and_save()
            else:
                self._save(best=False)

    def _after_epoch(self) -> None:
        config, epoch = self.config, self.progress.epoch
        should_continue = self._should_continue(0)
        if self._stopping:
            self._save_and_leave(before_validation=True)
        if not should_continue:
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
        progress = self.progress
        if (
            progress.validated == progress.steps
        ):  # no step since the last validation, which must not count twice for patience
            self._save(best=False)
            return
        with self._divergence_explained():
            by_weights = self._metrics_by_weights()
        if self._any_rank_is_asked():
            self._save_and_leave(before_validation=True)
        progress.weights = self._better_weights(by_weights)
        metrics = by_weights.get(progress.weights)
        gained = metrics is None or metrics["mrr"] > progress.best_mrr
        if metrics is not None:
            progress.validated = progress.steps
            progress.evaluations_without_gain = 0 if gained else progress.evaluations_without_gain + 1
            progress.best_mrr = max(progress.best_mrr, metrics["mrr"])
            self.schedule.after_evaluation(progress.evaluations_without_gain)
        patience = self.config.train.patience
        if patience is not None and progress.evaluations_without_gain >= patience:
            self._stop("patience")
        self._report(metrics, by_weights=by_weights)
        self._save(best=gained)

    def _metrics_by_weights(self) -> dict[Weights, Metrics]:
        """Validate with the raw weights, and with their average, unless it is of one epoch, whose weights it equals;
        empty without validation triples."""
        raw = self.learner.validate()
        if raw is None or self.average.count < 2:
            return {} if raw is None else {"raw": raw}
        with self.average.in_model():
            average = self.learner.validate()
        assert average is not None
        return {"raw": raw, "average": average}

    def _better_weights(self, by_weights: Mapping[Weights, Metrics]) -> Weights:
        """Return the weights with the better MRR; without validation triples, the average if there is one."""
        if by_weights:
            return max(by_weights, key=lambda weights: by_weights[weights]["mrr"])
        return "average" if self.average.count else "raw"

    def _should_continue(self, step: int) -> bool:
        """Return whether to train on, and report every ``REPORT_SECONDS``; collective.

        Called before each window of steps and after an epoch.
        """
        due = step > 0 and time.perf_counter() - self._reported > REPORT_SECONDS
        limit = self.config.train.time_limit_seconds
        # The first rank decides by its clock: ranks that disagreed would wait for each other forever.
        gone = self._seconds() / limit if limit else 0.0
        # It is a tensor of the host, which a device that computes need not be waited for.
        decision = torch.tensor([gone, due, self.stop.requested, self._window()], dtype=torch.float32)
        self.schedule.time_gone, report, stop, window = self.ranks.broadcast(decision).tolist()
        self._stopping, self.loop.window = bool(stop), int(window)
        if report and not stop:
            self._report(step=step)
        return self.schedule.time_gone < 1 and not stop

    def _window(self) -> int:
        """Return the number of steps until the next ``_should_continue``: few if steps are slow, to stop in time."""
        now, steps = time.perf_counter(), self.loop.steps
        before, self._asked_at = self._asked_at, (now, steps)
        if self.config.negatives.pool.actors:
            return WINDOW  # prefetched draws of one window share vectors, so its size must not depend on time
        done = steps - before[1]
        return max(1, min(WINDOW, int(WINDOW_SECONDS * done / (now - before[0])))) if done else self.loop.window

    def _any_rank_is_asked(self) -> bool:
        """Return whether any rank has received a stop request, and may have skipped computations; collective."""
        stop = torch.tensor([float(self.stop.requested)])
        self.ranks.all_reduce(stop, "max")
        return bool(stop)

    def _save_and_leave(self, *, before_validation: bool = False) -> NoReturn:
        """Write a checkpoint and raise StopAsked; collective."""
        progress = self.progress
        if before_validation:
            progress.stopped_by, progress.stopped_at = "", 0.0
            if progress.step == 0:  # the epoch has yet to be validated: a resumed run begins at its end
                progress.epoch, progress.step = progress.epoch - 1, self.learner.steps_per_epoch
        if (progress.epoch, progress.step) != self._saved:
            self._save(best=False)
        self.checkpoints.wait()
        raise StopAsked

    def _seconds(self) -> float:
        return self.progress.seconds + time.perf_counter() - self._started

    def _report(
        self, valid: Metrics | None = None, step: int | None = None, by_weights: Mapping[Weights, Metrics] | None = None
    ) -> None:
        """Write one line of metrics.jsonl; collective."""
        loss = self.loop.pop_mean_loss()
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
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
        if by_weights and len(by_weights) > 1:
            line["valid_by_weights"] = dict(by_weights)
        self._reported, self._steps_reported = now, self.loop.steps
        if self.ranks.first:
            self._check_writer()
            self.folder.report(line)
            if self.listener is not None:
                self.listener(line)
        self._observe(line, steps)

    def _observe(self, line: Record, steps: int) -> None:
        """Pass a line to the observer, with what this rank has done since the last one."""
        loop, learner = self.loop, self.learner
        triples = steps * learner.triples_per_epoch / learner.steps_per_epoch
        exchanged, fetched = loop.bytes_exchanged - self._bytes_reported, loop.rows_fetched - self._rows_reported
        self._bytes_reported, self._rows_reported = loop.bytes_exchanged, loop.rows_fetched
        self._observer.report(RankReport(line, self.ranks.size, steps, triples, exchanged, fetched))

    def _note_checkpoint(self, name: str) -> None:
        self._observer.checkpoint(self.folder.note_checkpoint(name))

    def _triples_per_second(self, steps: int, seconds: float) -> float:
        triples = steps * self.learner.triples_per_epoch / self.learner.steps_per_epoch
        return round(triples / max(seconds, 1e-9), 1)

    def _bytes_per_step(self) -> int:
        return self.loop.bytes_exchanged // max(1, self.loop.steps)

    def _save(self, *, best: bool) -> None:
        if self.ranks.first:
            self._check_writer()
        if best:
            self._best_at = self.progress.steps
        self.progress.averaged, self.progress.last_averaged = self.average.count, self.average.last
        progress = self.progress.saved(self._seconds(), self.schedule.halvings, self.division)
        progress[PROVENANCE] = self.provenance.to_json()
        best |= self._best_at == self.progress.steps  # it replaces the best checkpoint with the same model
        with self._divergence_explained():
            state = self.average.with_both(self.learner.state(), self.progress.weights)
            self.checkpoints.save(f"step-{self.progress.steps:09d}", state, progress, best=best)
        self._saved = self.progress.epoch, self.progress.step

    @contextmanager
    def _divergence_explained(self) -> Iterator[None]:
        """Convert errors of non-finite numbers into ``DivergedError``, which names a checkpoint to resume from."""
        try:
            yield
        except (NonFiniteError, ScoreError) as error:
            raise self._diverged(str(error).partition(". ")[0]) from error

    def _diverged(self, what: str) -> DivergedError:
        try:
            self.checkpoints.wait()  # a save in progress is the checkpoint to resume from, or fails on the same numbers
        except NonFiniteError as error:
            what = str(error)
        sound, remedy = self.checkpoints.last, "lower optimizer.learning_rate, or raise regularizer.weight, and"
        if sound is None:
            way_out = f"No checkpoint had been saved: {remedy} train anew"
        else:
            way_out = (
                f"Checkpoint {sound} in {self.folder.checkpoints} holds the last sound state: {remedy} continue from "
                "it with --resume --accept-changes, or train anew in another run folder"
            )
        return DivergedError(f"training has diverged in epoch {self.progress.epoch}: {what}. {way_out}")

    def restore(self, *, accept_changes: bool = False) -> None:
        """Resume from the newest sound checkpoint; collective.

        A run without a first checkpoint starts from its first step.

        Raises:
            CheckpointError: the checkpoints of the run were deleted, or every one is damaged.
            ResumeError, StoreMismatchError: the run was trained with other settings, or on another store.
        """
        name = self.checkpoints.newest()
        if name is None:
            self._start_afresh()
            return
        self._keep_origin(name)
        changes = self._changes_since(name, accept_changes)
        best_mrr = self._best_mrr_measured_now(changes)
        manifest = self.checkpoints.describe(name)
        workers = manifest.world_size
        self.progress = progress = self._restored(manifest.progress, workers)
        state = self.learner.state()
        state = self.average.to_restore(state, progress.weights, progress.averaged, progress.last_averaged)
        saved = self.checkpoints.load(name, state)
        if not self.average.count:
            progress.weights = "raw"
        self.progress.accept(changes, self.learner.steps_per_epoch)
        self._forget_lost_best(name)
        if best_mrr is not None:
            self.progress.best_mrr = best_mrr
        self.schedule.halvings = int(saved["halvings"])
        if self.progress.segments and self.progress.step < self.learner.steps_per_epoch:
            self.learner.continue_epoch(self.progress.epoch, self.progress.segment_start, self.progress.segments)
        self._saved = self.progress.epoch, self.progress.step
        self._tell_other_workers(workers)
        committed = self.folder.last_checkpoint_time() if self.ranks.first else None
        if committed is not None:
            self._observer.checkpoint(committed)

    def _tell_other_workers(self, before: int) -> None:
        """Say where training goes on if another number of workers wrote the checkpoint: what the driver shows next may
        be an earlier part of an epoch."""
        progress = self.progress
        if self.ranks.first and before != self.ranks.size:
            epoch = progress.epoch + progress.step / self.learner.steps_per_epoch
            self.folder.notice(
                f"training goes on from step {progress.steps:,} (epoch {epoch:.3g}) with {self.ranks.size} "
                f"worker{'s' * (self.ranks.size > 1)}, earlier with {before}"
            )

    def _restored(self, saved: dict[str, JsonValue], workers: int) -> Progress:
        return Progress.restored(saved, self.config.train, self.division, workers)

    def _start_afresh(self) -> None:
        """Start from the first step; refused if the run had checkpoints, whose training would be repeated."""
        problem = self.checkpoints.on_first(self._lost_checkpoints)
        if problem is not None:
            raise CheckpointError(problem)
        if self.ranks.first and self.folder.last_step():
            self.folder.notice(
                f"{self.folder.path} had stopped before its first checkpoint was saved: it starts from the first step"
            )

    def _lost_checkpoints(self) -> str | None:
        """Return the error for a run whose checkpoints were deleted; None if it may never have had any."""
        folder, config, steps = self.folder, self.config.checkpoint, self.learner.steps_per_epoch
        epochs = min(config.every, self.config.evaluate.every, self.config.train.epochs)
        within = config.every_steps if (config.every_steps or steps) < steps else None
        second = 2 * (within or epochs * steps)  # by then the first save had ended
        last, name = folder.last_step(), folder.last_checkpoint()
        if name is None and last <= second and not folder.result.exists():
            return None
        known = f"{folder.saved.name} names {name}" if name else f"{folder.metrics.name} goes to step {last}"
        return (
            f"{folder.checkpoints} holds no checkpoint, and this run had some ({known}). Restore the folder from a "
            "copy, or train anew in another run folder"
        )

    def _forget_lost_best(self, newest: str) -> None:
        """Set the best MRR to that of the best existing checkpoint: a lost model must not count as the best."""
        if self.checkpoints.describe(newest).best:
            self._best_at = self.progress.steps
            return
        best = self.checkpoints.best()
        manifest = None if best is None else self.checkpoints.describe(best)
        held = -1.0 if manifest is None else self._restored(manifest.progress, manifest.world_size).best_mrr
        if held < self.progress.best_mrr and self.ranks.first:
            self.folder.notice(
                f"the checkpoint of the best model so far (validation MRR {self.progress.best_mrr:.4f}) is lost; "
                + ("the next validated model counts as the best" if best is None else f"{best} takes its place")
            )
        self.progress.best_mrr = held

    def _keep_origin(self, checkpoint: str) -> None:
        """Record of a run on a grown graph, as its first checkpoint did, from which checkpoint it started."""
        recorded = recorded_in(self.checkpoints.describe(checkpoint).progress, f"the manifest of {checkpoint}")
        if recorded is not None:
            self.provenance = self.provenance.model_copy(update={"grown_from": recorded.grown_from})

    def _changes_since(self, checkpoint: str, accept_changes: bool) -> list[Change]:
        """Return the settings that differ from those of a checkpoint."""
        recorded = recorded_in(self.checkpoints.describe(checkpoint).progress, f"the manifest of {checkpoint}")
        if recorded is None:  # the checkpoint was written by an earlier version of distkg
            return check_resume(self.config, self.folder, accept_changes=accept_changes)
        return compare(recorded, self.provenance, self.folder, accept_changes=accept_changes)

    def _best_mrr_measured_now(self, changes: Sequence[Change]) -> float | None:
        """Return the MRR of the best checkpoint on the current validation triples, to compare later models with it.

        None if the validation triples are unchanged, or there is no such checkpoint. Overwrites the model.
        """
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

    def _evaluate_other_weights(self, checkpoint: str) -> dict[Weights, dict[str, Metrics]]:
        """Return the metrics of the weights of a checkpoint with the lower validation MRR, by split; empty if it has
        no average of several epochs. Overwrites the model."""
        manifest = self.checkpoints.describe(checkpoint)
        restored = self._restored(manifest.progress, manifest.world_size)
        if restored.averaged < 2:
            return {}
        weights, model = other(restored.weights), self.learner.model_state()
        self.checkpoints.load(checkpoint, prefixed(model, model, weights))
        return {weights: {split: outcome["metrics"] for split, outcome in self.learner.evaluate().items()}}

    def finish(self) -> Record:
        """Evaluate the best model on valid and test, write and return the result; collective.

        Raises:
            StopAsked: on every rank.
        """
        seconds = self._seconds()
        with self._divergence_explained():
            self.checkpoints.wait()
        self.stop.unsaved = False
        best = self.checkpoints.best()
        other_metrics = {} if best is None else self._evaluate_other_weights(best)
        if best is not None:
            self.checkpoints.load(best, self.learner.model_state())
        elif self.progress.weights == "average":
            self.average.swap()
        evaluated = self.learner.evaluate()
        if self._any_rank_is_asked():
            raise StopAsked
        peaks = self.ranks.all_gather(torch.tensor([peak_rss_mb()])).tolist()
        done = self.progress.steps
        metrics = {split: outcome["metrics"] for split, outcome in evaluated.items()}
        result: Record = {
            "metrics": metrics,
            **_by_weights(metrics, other_metrics),
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
            "notices": self.folder.read_notices(),
            "accepted_changes": self.progress.accepted_changes,
            "graphs": [graph.model_dump() for graph in self.provenance.graphs],
            **({"grown_from": self.provenance.grown_from.model_dump()} if self.provenance.grown_from else {}),
            **{key: value for key, value in evaluated.get("test", {}).items() if key.startswith("by_")},
            "graph": self.learner.describe(),
        }
        if self.ranks.first:
            self._check_writer()
            self.learner.export_model(self.folder.path)
            self.folder.write_result(result)
        return result


def _by_weights(
    metrics: dict[str, Metrics], other_metrics: Mapping[Weights, dict[str, Metrics]]
) -> dict[str, str | dict[Weights, dict[str, Metrics]]]:
    """Return the entries of a result about weights: those of the model, and the metrics of both."""
    if not other_metrics:
        return {}
    ((weights, others),) = other_metrics.items()
    return {"weights": other(weights), "metrics_by_weights": {other(weights): metrics, weights: others}}
