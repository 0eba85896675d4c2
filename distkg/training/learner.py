"""What a run needs of what it trains, be it embeddings of one graph or a foundation model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from distkg.sharding.checkpoint.checkpoint import State
from distkg.training.clock import Clock
from distkg.training.provenance import Provenance
from distkg.training.run_dir import Record

WINDOW = 8
"""Steps between two questions whether to go on, at most."""


class Steps(Protocol):
    """Makes the steps of an epoch.

    Attributes:
        clock: seconds by phase.
        bytes_exchanged: bytes that this rank sent to and received from others.
        steps: steps done.
        window: steps between two questions whether to go on; the same on all ranks.
    """

    clock: Clock
    bytes_exchanged: int
    steps: int
    window: int

    def run(self, epoch: int, first: int, last: int, should_continue: Callable[[int], bool]) -> int:
        """Steps first … last-1 of an epoch. ``should_continue(step)`` is asked now and then; where it says no, the
        steps end there. Returns the next step."""
        ...

    def pop_mean_loss(self) -> float:
        """Mean loss per step since the last call, over all ranks."""
        ...


class Learner(Protocol):
    """A model in training; methods are collective among ranks.

    Attributes:
        steps_per_epoch: how many make an epoch.
        triples_per_epoch: triples that an epoch asks about, over all ranks.
    """

    steps_per_epoch: int
    triples_per_epoch: int

    @property
    def loop(self) -> Steps:
        """Makes its steps."""
        ...

    def provenance(self) -> Provenance:
        """What it learns from: stores by checksum, and the configuration; only this rank reads."""
        ...

    def model_state(self) -> State:
        """The tensors that make the model."""
        ...

    def state(self) -> State:
        """Those and what the optimizer keeps: everything that a resumed run needs."""
        ...

    def telemetry(self) -> Record:
        """Keys of a report beyond those of every run, such as ``negatives``."""
        ...

    def validate(self) -> dict[str, float] | None:
        """Validation metrics; None where there is nothing to validate on."""
        ...

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """Split → its metrics, in whole (``metrics``) and in parts (``by_…``)."""
        ...

    def export_model(self, folder: Path) -> None:
        """Write the model into a run folder in a form of its own, where it has one; only one rank is asked."""
        ...

    def describe(self) -> Record:
        """Sizes and balance of what is learned from, for the report."""
        ...
