"""Observer of a run: receives the reports of a rank, for metrics that are seen from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from distkg.training.run_dir import Record


@dataclass(frozen=True)
class RankReport:
    """Report of one rank, made with each line of metrics.jsonl.

    Attributes:
        line: the line as this rank has it: ``seconds`` (by phase) and ``peak_rss_mb`` are its own, and those of rank 0
            are written.
        ranks: number of ranks.
        steps: steps since the last report.
        triples: triples that all ranks trained on since then.
        bytes_exchanged: bytes that this rank sent to and received from others since then.
        rows_fetched: entity rows that this rank received from others since then.
    """

    line: Record
    ranks: int
    steps: int
    triples: float
    bytes_exchanged: int
    rows_fetched: int


class Observer(Protocol):
    """Observer on one rank; what it does takes the time of no step but the one after a report."""

    def report(self, report: RankReport) -> None:
        """Receive a report. All ranks receive one together, so this may be collective if ``valid`` is in its line."""
        ...

    def checkpoint(self, time: float) -> None:
        """Receive the Unix time at which a checkpoint was committed; on rank 0, from the thread that writes it."""
        ...


class NoObserver:
    """Observer that does nothing."""

    def report(self, report: RankReport) -> None:
        return

    def checkpoint(self, time: float) -> None:
        return
