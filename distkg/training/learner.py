"""Interface between a training run and the model that it trains: embeddings of one graph, or a foundation model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distkg.config import ConfigError, RunConfig
from distkg.sharding.checkpoint.checkpoint import State
from distkg.sharding.row_storage import RowStorage
from distkg.training.clock import Clock
from distkg.training.provenance import Provenance
from distkg.training.run_dir import Record

WINDOW = 8
"""Maximum number of steps between two calls of ``should_continue``."""


@dataclass(frozen=True)
class Division:
    """Settings that decide which items (triples or queries) a step of an epoch visits, and on which worker.

    Attributes:
        workers: number of workers.
        steps: number of steps in an epoch.
        items: number of items in an epoch, over all workers; 0 if steps draw them at random.
        seed: random seed of their order.
        resident_share: share of the entities that have both ends of consecutive triples; 1 for a random order.
    """

    workers: int
    steps: int
    items: int
    seed: int
    resident_share: float = 1.0


@dataclass(frozen=True)
class Segment:
    """Steps first … last - 1 of an epoch, which were done under one division."""

    division: Division
    first: int
    last: int


def check_batch(config: RunConfig, workers: int) -> None:
    """Refuse a batch with fewer queries than there are workers.

    Raises:
        ConfigError: names the number of workers.
    """
    if config.train.batch_size < workers:
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} leaves some of {workers} workers without a query. Set it to "
            f"{workers} at least, or lower train.workers"
        )


class Steps(Protocol):
    """Training loop over the steps of an epoch.

    Attributes:
        clock: seconds by phase.
        bytes_exchanged: bytes that this rank sent to and received from other ranks, up to the current window.
        rows_fetched: entity rows that this rank received from other ranks, up to the current window.
        steps: number of completed steps.
        window: steps between two calls of ``should_continue``; the same on all ranks.
    """

    clock: Clock
    bytes_exchanged: int
    rows_fetched: int
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
        items_per_epoch: number of items that an epoch visits, as in ``Division``.
    """

    steps_per_epoch: int
    triples_per_epoch: int
    items_per_epoch: int

    @property
    def loop(self) -> Steps:
        """Return the training loop."""
        ...

    def continue_epoch(self, epoch: int, first: int, segments: Sequence[Segment]) -> None:
        """Divide what is left of an epoch among its steps from ``first`` on, each item to one step.

        ``segments`` are the steps that were done so far, with other numbers of workers, steps or seeds.
        """
        ...

    def provenance(self) -> Provenance:
        """Return the provenance of the model: checksums of its stores, and the configuration; not collective."""
        ...

    def model_state(self) -> State:
        """Return the tensors of the model, in the memory of the model."""
        ...

    def storage(self) -> RowStorage:
        """Return storage for tensors like the sharded ones of the model."""
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
