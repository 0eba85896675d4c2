"""Progress of a run, kept in checkpoints beside tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distkg.config import TrainConfig
from distkg.training.resume import Change

_FIELDS = ("epoch", "step", "steps", "seconds", "best_mrr", "evaluations_without_gain")


class ProgressError(ValueError):
    """Error of invalid progress counters."""


Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Saved(BaseModel):
    """Validated progress of a checkpoint, whose file may be untrusted."""

    model_config = ConfigDict(strict=True)

    epoch: Count
    step: Count
    steps: Count
    seconds: float = Field(ge=0)
    best_mrr: float = Field(ge=-1, allow_inf_nan=False)
    evaluations_without_gain: Count
    halvings: Count
    validated: int | None = Field(None, ge=-1)  # missing in earlier versions, whose checkpoints were mostly validated
    steps_per_epoch: int | None = Field(None, ge=1)
    stopped_by: Literal["", "patience", "time_limit_seconds"] = ""
    stopped_at: float = 0.0
    accepted_changes: list[dict[str, Any]] = Field(default_factory=list)


@dataclass
class Progress:
    """Counters of a run.

    Attributes:
        epoch: epochs completed.
        step: steps completed in the current epoch.
        steps: steps completed in all.
        seconds: wall time of earlier processes of this run.
        best_mrr: best validation MRR so far.
        evaluations_without_gain: validations since then.
        validated: steps completed when the model was last validated; -1 before the first time.
        stopped_by: key of ``train`` that ends the run, such as patience; empty while training.
        stopped_at: the value of that key.
        accepted_changes: settings that were changed between two processes of this run, each with the step and the epoch
            from which they apply.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    best_mrr: float = -1.0
    evaluations_without_gain: int = 0
    validated: int = -1
    stopped_by: str = ""
    stopped_at: float = 0.0
    accepted_changes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def stopped(self) -> bool:
        """True if no further epoch is to be trained."""
        return bool(self.stopped_by)

    def stop(self, key: str, limit: float | None) -> None:
        """Record why the run stops; the first reason is kept."""
        if not self.stopped_by:
            self.stopped_by, self.stopped_at = key, float(limit or 0)

    def check(self, steps_per_epoch: int) -> None:
        """Raise if the step is outside of the epoch.

        Raises:
            ProgressError: names the counters.
        """
        if not 0 <= self.step <= steps_per_epoch:  # the end of an epoch is valid, because validation may be pending
            raise ProgressError(
                f"step {self.step} of epoch {self.epoch} is not one of its {steps_per_epoch} steps: the checkpoint "
                "from which this run continues was written with other settings. Resume with those settings"
            )

    def accept(self, changes: Sequence[Change], steps_per_epoch: int) -> None:
        """Add the changes of the course of training, from this step on."""
        epoch = round(self.epoch + self.step / steps_per_epoch, 4)
        self.accepted_changes += [
            {"step": self.steps, "epoch": epoch, "key": change.key, "before": change.before, "after": change.after}
            for change in changes
            if change.kind == "course"
        ]

    def saved(self, seconds: float, halvings: int, steps_per_epoch: int) -> dict[str, Any]:
        """Return the progress as JSON for a checkpoint's manifest."""
        return {
            **{name: getattr(self, name) for name in _FIELDS},
            "seconds": seconds,
            "validated": self.validated,
            "steps_per_epoch": steps_per_epoch,
            "stopped_by": self.stopped_by,
            "stopped_at": self.stopped_at,
            "accepted_changes": self.accepted_changes,
            "halvings": halvings,
        }

    @classmethod
    def restored(cls, saved: dict[str, Any], settings: TrainConfig, steps_per_epoch: int) -> Progress:
        """Restore progress from ``saved``, under settings that may have changed.

        A run that was stopped by a limit stays stopped, unless the limit was raised or removed. If an epoch has another
        number of steps than before, the step with the same share of the epoch is used, rounded down: no triple of the
        epoch is left out, and less than a batch of them is repeated.

        Raises:
            ProgressError: counters are missing or invalid.
        """
        try:
            restored = _Saved.model_validate(saved)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(ascii, problem["loc"]))
            raise ProgressError(f"the progress in a checkpoint is damaged: {place}: {problem['msg']}") from None
        progress = cls(**{name: getattr(restored, name) for name in _FIELDS})
        progress.validated = restored.steps if restored.validated is None else restored.validated
        progress.accepted_changes = restored.accepted_changes
        if restored.stopped_by:
            limit = getattr(settings, restored.stopped_by)
            if limit is not None and limit <= restored.stopped_at:
                progress.stop(restored.stopped_by, restored.stopped_at)
        before = restored.steps_per_epoch or steps_per_epoch
        if before != steps_per_epoch:
            progress.step = progress.step * steps_per_epoch // before
        return progress
