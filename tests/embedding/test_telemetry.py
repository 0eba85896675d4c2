"""Reports on a pool over several ranks: counts are summed, and a warning of any rank is in the report once."""

from __future__ import annotations

from typing import Any

from distributed import run_ranks

from distkg.embedding.telemetry import delivery_report
from distkg.negatives.prefetch.pool_events import PoolEvent, PoolEventLog
from distkg.negatives.prefetch.prefetch_stats import Deliveries
from distkg.sharding.ranks import Ranks


class Counted:
    """What a source counts on one rank."""

    def __init__(self, rank: int) -> None:
        self.log = PoolEventLog("fallback")
        self.restarts, self.hung = 2, rank
        self.counts = Deliveries(delivered=6, failed=2 * rank, lost=1, late=1)

    def take_deliveries(self) -> Deliveries:
        taken, self.counts = self.counts, Deliveries()
        return taken


def two_reports(ranks: Ranks) -> list[dict[str, Any]]:
    counted = Counted(ranks.rank)
    if ranks.rank == 1:
        counted.log.heed([PoolEvent("failed", "no luck on 1")])
    first = delivery_report([counted], ranks)
    counted.log.heed([PoolEvent("failed", f"no luck on {ranks.rank}")])  # said by a rank before, so by none again
    counted.log.heed([PoolEvent("lost", f"negative actor {ranks.rank}: it died")])
    return [first, delivery_report([counted], ranks)]


def test_counts_are_summed_and_warnings_said_once_over_ranks() -> None:
    for first, second in run_ranks(2, two_reports):
        assert first == {
            "delivered": 0.666667,
            "late": 2,
            "old": 0,
            "broken": 0,
            "refused": 0,
            "failed": 2,
            "lost": 2,
            "age_median": None,
            "age_max": None,
            "restarts": 2,
            "hung": 1,
            "warnings": [
                "no luck on 1. negatives.pool.fallback draws instead; `failed` in metrics.jsonl counts the queries"
            ],
        }
        assert second["delivered"] is None
        (warning,) = second["warnings"]
        assert warning.startswith("negative actor 0: it died. It is being replaced, and ")
