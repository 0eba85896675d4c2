"""Learning rate over the run, as a factor of the configured one."""

from __future__ import annotations

import math

from distkg.config import OptimizerConfig

_PLATEAU_PATIENCE = 2


class Schedule:
    """Warm-up, then constant, linear or cosine to 0, or halved at plateaus of validation MRR.

    A run under a time limit anneals by epochs or by time, whichever is further, so that it ends annealed.

    Attributes:
        halvings: how often a plateau has halved the rate (kept in checkpoints).
        time_gone: share of the time limit that is over, in [0, 1]; the same on all ranks, as their rates must be.
    """

    def __init__(self, config: OptimizerConfig, epochs: int) -> None:
        self._name, self._warmup, self._epochs = config.schedule, config.warmup_epochs, epochs
        self.halvings = 0
        self.time_gone = 0.0

    def factor(self, epoch: float) -> float:
        """Factor at this point, in epochs since the start."""
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
        """Tell the plateau schedule how long validation MRR has not risen."""
        if self._name == "plateau" and evaluations_without_gain and evaluations_without_gain % _PLATEAU_PATIENCE == 0:
            self.halvings += 1
