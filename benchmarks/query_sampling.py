"""HaLE's query sampling: seconds per epoch and peak memory beside negative sampling, all entities, and plain PyTorch.

Two workers train RotE; plain PyTorch is one process with all cores that keeps the whole matrix of scores. The last
rows are the log Σ exp alone, both passes, as a share of the matrix products of the machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Figures, begin, finish, graph_settings, settings_of
from benchmarks.memory import start_only, workers
from benchmarks.plain_query_sampling import seconds_per_epoch
from benchmarks.processes import WORKERS, alone, on_ranks
from benchmarks.rooflines import QUICK_SECONDS, SECONDS, Rooflines, around, together
from benchmarks.training_windows import TimedTraining
from distkg.config import RunConfig, parse_config
from distkg.data.store.graph_store import Store
from distkg.kernels.scores.activated import ActivatedDistance
from distkg.kernels.scores.activations import Hanon
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards

QUERY_SHARE = 0.1
NEGATIVES = 256
LARGER = 8
"""How many times larger the batch is whose memory is compared."""

HALE = {"name": "query_sampling", "query_share": QUERY_SHARE, "activation": "hanon"}
STRATEGIES: dict[str, dict[str, Any]] = {
    "HaLE": {"objective": HALE},
    "SamNeg, shared negatives": {"objective": {"name": "logistic"}, "negatives": {"count": NEGATIVES}},
    "SamNeg, independent": {"objective": {"name": "logistic"}, "negatives": {"count": NEGATIVES, "shared": False}},
    "AllNeg, one by one": {"objective": {"name": "one_vs_all", "group_answers": False}},
    "AllNeg, grouped": {"objective": {"name": "one_vs_all"}},
}
"""Row of the table → sections of the configuration."""

_USEFUL = 6  # operations per dimension and score: one product forward, two for the gradients


@dataclass(frozen=True)
class Workload:
    """Sizes: dimensions, triples per step over all workers, timed steps, queries and passes of the log Σ exp."""

    dims: tuple[int, ...] = (32, 256)
    batch_size: int = 512
    steps: int = 24
    queries: tuple[int, ...] = (102, 256)
    passes: int = 12
    roofline_seconds: float = SECONDS

    @classmethod
    def quick(cls) -> Workload:
        return cls((8,), 32, 2, (5,), 2, QUICK_SECONDS)


def strategy_config(store: str, dim: int, batch_size: int, sections: dict[str, Any]) -> RunConfig:
    """RotE with Adam."""
    tree = {
        "data": {"store": store},
        "model": {"name": "rote", "dim": dim},
        "optimizer": {"name": "adam", "learning_rate": 1e-3},
        "train": {"batch_size": batch_size},
    }
    return parse_config(tree | sections, "this benchmark")


def epoch_seconds(ranks: Ranks, config: RunConfig, steps: int) -> float:
    """Seconds per epoch from a window of steps; collective."""
    training = TimedTraining(config, ranks)
    return training.batches.triples / training.window(steps).triples_per_second


def log_sum_exp_rate(ranks: Ranks, store: str, dim: int, queries: int, work: Workload) -> tuple[Rooflines, float]:
    """Useful operations per second of both passes over this rank's rows, with rooflines around them; collective."""
    low, high = Shards(Store.open(store).num_entities, ranks.size).range(ranks.rank)
    query, candidates = torch.randn(queries, dim + 1) / dim**0.5, torch.randn(high - low, dim) / dim**0.5
    query[:, -1] = 1
    grad_query, grad_candidates = torch.zeros_like(query), torch.zeros_like(candidates)
    similarity, weight = ActivatedDistance(Hanon()), torch.ones(queries)

    def both_passes(times: int) -> None:
        for _ in range(times):
            reduction = similarity.log_sum_exp(query, candidates, keep=True)
            reduction.second_pass(reduction.first_pass(), weight, grad_query, grad_candidates)

    def timed() -> float:
        start = time.perf_counter()
        both_passes(work.passes)
        return time.perf_counter() - start

    both_passes(2)
    machine, seconds = around(ranks, timed, work.roofline_seconds)
    return machine, _USEFUL * work.passes * queries * candidates.numel() / seconds


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every strategy in processes of its own, in every repetition."""
    session = begin(__file__, str(__doc__), arguments, "store", repetitions=3)
    work = Workload.quick() if session.quick else Workload()
    figures = Figures()
    for _ in session.repetitions:
        libraries = max(worker.peak_mb for worker in workers(start_only))
        for dim in work.dims:
            hale = 0.0
            for name, sections in STRATEGIES.items():
                config = strategy_config(session.store, dim, work.batch_size, sections)
                measured = on_ranks(WORKERS, epoch_seconds, config, work.steps)
                hale = hale or measured[0].value
                peak = max(worker.peak_mb for worker in measured)
                columns = {"s/epoch": measured[0].value, "× HaLE": measured[0].value / hale, "worker MB": peak}
                figures.add(f"{name}, dim {dim}", {**columns, "of it ours MB": peak - libraries})
            large = strategy_config(session.store, dim, LARGER * work.batch_size, STRATEGIES["HaLE"])
            measured = on_ranks(WORKERS, epoch_seconds, large, max(2, work.steps // LARGER))
            peak = max(worker.peak_mb for worker in measured)
            columns = {"s/epoch": measured[0].value, "× HaLE": measured[0].value / hale, "worker MB": peak}
            figures.add(f"HaLE, batch × {LARGER}, dim {dim}", {**columns, "of it ours MB": peak - libraries})
            plain = alone(seconds_per_epoch, session.store, dim, work.batch_size, QUERY_SHARE, max(2, work.steps // 4))
            columns = {"s/epoch": plain.value, "× HaLE": plain.value / hale, "worker MB": plain.peak_mb}
            figures.add(f"HaLE in plain PyTorch, dim {dim}", {**columns, "of it ours MB": plain.peak_mb - libraries})
            for queries in work.queries:
                parts = [w.value for w in on_ranks(WORKERS, log_sum_exp_rate, session.store, dim, queries, work)]
                machine, rate = together(part[0] for part in parts), sum(part[1] for part in parts)
                row = f"log Σ exp of {queries} queries, dim {dim}"
                shares = {"% oneDNN": 100 * rate / machine.onednn, "% torch.mm": 100 * rate / machine.torch_mm}
                figures.add(row, {"useful Gflop/s": rate / 1e9, **shares})
    settings = settings_of(work, workers=WORKERS, graph=graph_settings(Store.open(session.store)))
    return finish(session, {**settings, "query_share": QUERY_SHARE, "negatives": NEGATIVES}, figures)


if __name__ == "__main__":
    main()
