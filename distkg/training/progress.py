"""How far a run has come: what a checkpoint keeps beside tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Progress:
    """Counters of a run.

    Attributes:
        epoch: epochs completed.
        step: steps done of the epoch under way.
        steps: steps done in all.
        seconds: wall time of earlier processes of this run.
        best_mrr: best validation MRR so far.
        evaluations_without_gain: validations since then.
        stopped: no further epoch is wanted.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    best_mrr: float = -1.0
    evaluations_without_gain: int = 0
    stopped: bool = False

    def saved(self, seconds: float, halvings: int, config_sha256: str, workers: int) -> dict[str, Any]:
        """As JSON for a checkpoint's manifest."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "steps": self.steps,
            "seconds": seconds,
            "best_mrr": self.best_mrr,
            "evaluations_without_gain": self.evaluations_without_gain,
            "halvings": halvings,
            "config_sha256": config_sha256,
            "workers": workers,
        }

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> Progress:
        """From what ``saved`` gave."""
        fields = ("epoch", "step", "steps", "seconds", "best_mrr", "evaluations_without_gain")
        return cls(**{name: saved[name] for name in fields})
