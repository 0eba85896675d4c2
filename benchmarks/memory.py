"""Peak resident memory of training and evaluation, each in fresh processes, beside PyKEEN's.

Of two workers both the larger one and the sum are given; what both map, such as torch's libraries, counts twice
in the sum. The last column counts it once, at the end of the work instead of at its peak. PyKEEN is one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import evaluation
from benchmarks.common import Figures, begin, finish, graph_settings, settings_of
from benchmarks.peers import run_pykeen
from benchmarks.processes import WORKERS, Finished, on_ranks
from benchmarks.training_windows import SCORERS, TimedTraining, Workload, sampled_config
from distkg.data.store.graph_store import Store
from distkg.sharding.ranks import Ranks

STEPS = 20
PEER_BATCHES = 2

Case = tuple[Callable[[], list[Finished[object]]], Callable[[], float]]
"""distkg's workers at the end of the work, and the peak MB of PyKEEN."""


def train(ranks: Ranks, scorer: str, store: str, work: Workload) -> None:
    """Some steps with overlap, which keeps two batches in memory; collective."""
    config = sampled_config(scorer, store, work, work.batch_size * ranks.size)
    TimedTraining(config, ranks).window(work.steps, overlap=True)


def start_only(ranks: Ranks) -> None:
    """Nothing: what remains is the memory of the libraries."""


def workers(function: Callable[..., object], *args: object) -> list[Finished[object]]:
    """Two workers that call the function."""
    return on_ranks(WORKERS, function, *args)


def peer_peak(task: str, store: str, **options: Any) -> float:
    """Peak MB of PyKEEN at one of its tasks."""
    return run_pykeen(task, store, **options).peak_mb


def cases(store: str, work: Workload, scorers: list[str], ranking: evaluation.Workload) -> dict[str, Case]:
    """Row of the table → how to measure it in either system."""
    training: dict[str, Case] = {
        f"training {scorer}": (
            partial(workers, train, scorer, store, work),
            partial(peer_peak, "train", store, scorer=scorer, **work.for_pykeen()),
        )
        for scorer in scorers
    }
    return {
        "libraries alone": (partial(workers, start_only), partial(peer_peak, "start", store)),
        **training,
        "evaluation DistMult": (
            partial(workers, evaluation.rates, store, ranking),
            partial(peer_peak, "evaluate", store, **ranking.for_pykeen()),
        ),
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every case in both systems, in every repetition."""
    session = begin(__file__, str(__doc__), arguments, "store")
    work = Workload.quick() if session.quick else replace(Workload(), steps=STEPS, peer_batches=PEER_BATCHES)
    ranking = evaluation.Workload.quick() if session.quick else evaluation.Workload()
    scorers = ["DistMult"] if session.quick else list(SCORERS)
    figures = Figures()
    for _ in session.repetitions:
        for row, (ours, theirs) in cases(session.store, work, scorers, ranking).items():
            measured, peer = ours(), theirs()
            peaks = [worker.peak_mb for worker in measured]
            columns = {"worker MB": max(peaks), "workers MB": sum(peaks), "PyKEEN MB": peer}
            shared_once = sum(worker.proportional_mb for worker in measured)
            figures.add(row, {**columns, "workers / PyKEEN": sum(peaks) / peer, "at end, shared once MB": shared_once})
    return finish(session, settings_of(work, workers=WORKERS, graph=graph_settings(Store.open(session.store))), figures)


if __name__ == "__main__":
    main()
