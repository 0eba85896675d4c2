"""Interface between a training run and the model that it trains: embeddings of one graph, or a foundation model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from distkg.sharding.checkpoint.checkpoint import State
from distkg.training.clock import Clock
from distkg.training.provenance import Provenance
from distkg.training.run_dir import Record

WINDOW = 8
"""Maximum number of steps between two calls of ``should_continue``."""


class Steps(Protocol):
    """Training loop over the steps of an epoch.

    Attributes:
        clock: seconds by phase.
        bytes_exchanged: bytes that this rank sent to and received from other ranks.
        steps: number of completed steps.
        window: steps between two calls of ``should_continue``; the same on all ranks.
    """

    clock: Clock
    bytes_exchanged: int
    steps: int
    window: int

    def run(self, epoch: int, first: int, last: int, should_continue: Callable[[int], bool]) -> int:
        """Run steps first … last-1 of an epoch and return the next step.

        ``should_continue(step)`` is called every ``window`` steps; once it returns False, the loop ends before that
        step.
        """
        ...

    def pop_mean_loss(self) -> float:
        """Return the mean loss per step since the last call, over all ranks."""
        ...


class Learner(Protocol):
    """Model in training; methods are collective among ranks.

    Attributes:
        steps_per_epoch: number of steps in an epoch.
        triples_per_epoch: number of triples that an epoch trains on, over all ranks.
    """

    steps_per_epoch: int
    triples_per_epoch: int

    @property
    def loop(self) -> Steps:
        """Return the training loop."""
        ...

    def provenance(self) -> Provenance:
        """Return the provenance of the model: checksums of its stores, and the configuration; not collective."""
        ...

    def model_state(self) -> State:
        """Return the tensors of the model."""
        ...

    def state(self) -> State:
        """Return the tensors of the model and of the optimizer: everything that a resumed run needs."""
        ...

    def telemetry(self) -> Record:
        """Return the keys of a report beyond those of every run, such as ``negatives``."""
        ...

    def validate(self) -> dict[str, float] | None:
        """Return validation metrics; None without validation triples."""
        ...

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """Return the metrics of each split, in total (``metrics``) and by part (``by_…``)."""
        ...

    def export_model(self, folder: Path) -> None:
        """Write the model into a run folder in its own format, if it has one; called on one rank."""
        ...

    def describe(self) -> Record:
        """Return the sizes and the balance of the training graphs, for the report."""
        ...
