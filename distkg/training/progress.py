"""Progress of a run, kept in checkpoints beside tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from distkg.config import TrainConfig
from distkg.training.learner import Division, Segment
from distkg.training.resume import Change
from distkg.training.weight_average import Weights

MOST_SEGMENTS = 1000  # of an epoch, in a checkpoint: to compute what each visited takes a pass over the items
_FIELDS = (
    "epoch",
    "step",
    "steps",
    "seconds",
    "best_mrr",
    "evaluations_without_gain",
    "averaged",
    "last_averaged",
    "weights",
)


class ProgressError(ValueError):
    """Error of invalid progress counters."""


Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _SavedSegment(BaseModel):
    """Validated segment of an epoch."""

    model_config = ConfigDict(strict=True, extra="forbid")

    workers: Annotated[int, Field(ge=1, lt=1 << 31)]
    steps: Annotated[int, Field(ge=1, lt=1 << 63)]
    items: Count
    seed: Annotated[int, Field(ge=0)]
    resident_share: float = Field(1.0, gt=0, le=1)  # missing in earlier versions, whose order was random
    first: Count
    last: Count

    def segment(self) -> Segment:
        division = Division(self.workers, self.steps, self.items, self.seed, self.resident_share)
        return Segment(division, self.first, self.last)


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
    segments: list[_SavedSegment] = Field(default_factory=list, max_length=MOST_SEGMENTS)
    averaged: Count = 0  # missing in earlier versions, as are the next two
    last_averaged: Count = 0
    weights: Weights = "raw"

    @model_validator(mode="after")
    def _average_is_there(self) -> Self:
        if self.weights == "average" and not self.averaged:
            raise ValueError("weights: average, but no epoch is averaged")
        return self

    @model_validator(mode="after")
    def _segments_lead_to_the_step(self) -> Self:
        """Check that every segment begins where the one before it ended, and the last ends at the step."""
        share, of = 0, 1
        for segment in self.segments:
            if not segment.first == share * segment.steps // of < segment.last <= segment.steps:
                raise ValueError("segments: they do not follow each other")
            share, of = segment.last, segment.steps
        steps = self.steps_per_epoch or 0
        if self.segments and self.step <= steps and share * steps // of != self.step:
            raise ValueError("segments: they do not lead to the step")
        return self


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
        averaged: number of epochs in the average of weights.
        last_averaged: epochs completed when the last one was averaged.
        weights: weights with the better MRR in the latest validation.
        segments: steps of the current epoch under other divisions than the present one.
        segment_start: step of the epoch from which the present division applies.
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
    averaged: int = 0
    last_averaged: int = 0
    weights: Weights = "raw"
    segments: list[Segment] = field(default_factory=list)
    segment_start: int = 0

    @property
    def stopped(self) -> bool:
        """True if no further epoch is to be trained."""
        return bool(self.stopped_by)

    def stop(self, key: str, limit: float | None) -> None:
        """Record why the run stops; the first reason is kept."""
        if not self.stopped_by:
            self.stopped_by, self.stopped_at = key, float(limit or 0)

    def end_epoch(self) -> None:
        """Move to the first step of the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.segments, self.segment_start = [], 0

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

    def saved(self, seconds: float, halvings: int, division: Division) -> dict[str, Any]:
        """Return the progress as JSON for a checkpoint's manifest."""
        return {
            **{name: getattr(self, name) for name in _FIELDS},
            "seconds": seconds,
            "validated": self.validated,
            "steps_per_epoch": division.steps,
            "stopped_by": self.stopped_by,
            "stopped_at": self.stopped_at,
            "accepted_changes": self.accepted_changes,
            "halvings": halvings,
            "segments": self._saved_segments(division),
        }

    def _saved_segments(self, division: Division) -> list[dict[str, float]]:
        """Return the segments of the epoch up to this step; none if they are too many."""
        present = Segment(division, self.segment_start, self.step)
        segments = [*self.segments, *([present] if present.last > present.first else [])]
        if len(segments) > MOST_SEGMENTS:
            return []
        return [{**asdict(each.division), "first": each.first, "last": each.last} for each in segments]

    @classmethod
    def restored(cls, saved: dict[str, Any], settings: TrainConfig, division: Division, workers: int) -> Progress:
        """Restore progress from ``saved``, under settings that may have changed.

        A run that was stopped by a limit stays stopped, unless the limit was raised or removed. If an epoch has another
        number of steps than before, the step with the same share of the epoch is used, rounded down. What earlier
        segments of the epoch left of its items is for the steps from there on.

        Args:
            division: division of the epochs from now on.
            workers: number of workers that wrote the checkpoint. They did all steps of the epoch if the checkpoint
                does not record its segments, as those of earlier versions do not.

        Raises:
            ProgressError: counters are missing or invalid.
        """
        try:
            restored = _Saved.model_validate(saved)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(ascii, problem["loc"]))
            message = f"{place}: {problem['msg']}" if place else problem["msg"]
            raise ProgressError(f"the progress in a checkpoint is damaged: {message}") from None
        progress = cls(**{name: getattr(restored, name) for name in _FIELDS})
        progress.validated = restored.steps if restored.validated is None else restored.validated
        progress.accepted_changes = restored.accepted_changes
        if restored.stopped_by:
            limit = getattr(settings, restored.stopped_by)
            if limit is not None and limit <= restored.stopped_at:
                progress.stop(restored.stopped_by, restored.stopped_at)
        before = restored.steps_per_epoch or division.steps
        segments = [each.segment() for each in restored.segments]
        if not segments and 0 < restored.step <= before:
            segments = [Segment(replace(division, workers=workers, steps=before), 0, restored.step)]
        if before != division.steps:
            progress.step = progress.step * division.steps // before
        progress._continue(segments, division)
        return progress

    def _continue(self, segments: list[Segment], division: Division) -> None:
        """Continue an epoch after these segments: the last of them, if it has this division, or a new one."""
        if any(segment.division.items != division.items for segment in segments):
            return  # an objective with other items has begun; its epoch counts as if it had done the same share
        if segments and segments[-1].division == division:
            *self.segments, present = segments
            self.segment_start = present.first
        else:
            self.segments, self.segment_start = segments, self.step
