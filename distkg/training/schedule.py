"""Learning-rate schedules, as a factor of the configured rate."""

from __future__ import annotations

import math

from distkg.config import OptimizerConfig

_PLATEAU_PATIENCE = 2


class Schedule:
    """Warm-up, then a constant rate, linear or cosine decay to 0, or halving at plateaus of validation MRR.

    A run with a time limit anneals by epochs or by time, whichever is further, so that its rate reaches the end of the
    schedule.

    Attributes:
        halvings: number of halvings at plateaus (kept in checkpoints).
        time_gone: used share of the time limit, in [0, 1]; the same on all ranks, because their rates must be equal.
    """

    def __init__(self, config: OptimizerConfig, epochs: int) -> None:
        self._name, self._warmup, self._epochs = config.schedule, config.warmup_epochs, epochs
        self.halvings = 0
        self.time_gone = 0.0

    def factor(self, epoch: float) -> float:
        """Return the factor at this point, in epochs since the start."""
        if epoch < self._warmup:
            return (epoch + 1e-8) / self._warmup
        epochs_gone = (epoch - self._warmup) / max(1e-9, self._epochs - self._warmup)
        done = min(1.0, max(epochs_gone, self.time_gone))
        if self._name == "linear":
            return 1 - done
        if self._name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 0.5**self.halvings

    def after_evaluation(self, evaluations_without_gain: int) -> None:
        """Update the plateau schedule with the number of validations since MRR last rose."""
        if self._name == "plateau" and evaluations_without_gain and evaluations_without_gain % _PLATEAU_PATIENCE == 0:
            self.halvings += 1
