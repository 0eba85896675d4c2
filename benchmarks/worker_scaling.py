"""From one worker to two, each pinned to a core of its own, and to one worker with both cores.

Strong scaling keeps the triples per step over all workers, weak scaling those of each worker. Negatives are
shared by chunks of queries. The figure of one worker is without overlap: it has nobody to exchange rows with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.common import Figures, begin, finish, graph_settings, settings_of
from benchmarks.processes import WORKERS, on_ranks
from benchmarks.training_windows import SCORERS, TimedTraining, Workload, sampled_config
from distkg.data.store.graph_store import Store
from distkg.kernels.threads import computing_threads
from distkg.sharding.ranks import Ranks

BATCH = 4096
STEPS = 20

Rates = dict[tuple[str, bool], float]
"""(Scorer, overlapped) → triples per second."""


def measure_all(
    ranks: Ranks, store: str, work: Workload, scorers: list[str], batch_size: int, threads: int = 1
) -> Rates:
    """These scorers with ``batch_size`` triples per step over all workers of ``threads`` CPUs; collective."""
    rates = {}
    with computing_threads(threads):
        for scorer in scorers:
            training = TimedTraining(sampled_config(scorer, store, work, batch_size), ranks)
            for overlap in (False, True):
                rates[scorer, overlap] = training.window(work.steps, overlap=overlap).triples_per_second
    return rates


def record(figures: Figures, one: Rates, strong: Rates, weak: Rates, both: Rates) -> None:
    """One repetition's figures."""
    for (scorer, overlap), rate in strong.items():
        base = one[scorer, False]
        figures.add(
            f"{scorer}, overlapped" if overlap else scorer,
            {
                "1 worker triples/s": base,
                f"{WORKERS} workers, strong": rate,
                "× strong": rate / base,
                f"{WORKERS} workers, weak": weak[scorer, overlap],
                "× weak": weak[scorer, overlap] / base,
                f"1 worker, {WORKERS} CPUs": both[scorer, overlap],
                "× CPUs": both[scorer, overlap] / base,
            },
        )


def main(arguments: Sequence[str] | None = None) -> Path:
    """One worker, two, two with twice the batch, and one with two CPUs, in turn in every repetition."""
    session = begin(__file__, str(__doc__), arguments, "store")
    work = Workload.quick() if session.quick else replace(Workload(), batch_size=BATCH, steps=STEPS)
    scorers = ["DistMult"] if session.quick else list(SCORERS)
    figures = Figures()
    for _ in session.repetitions:
        one, strong, weak = (
            on_ranks(size, measure_all, session.store, work, scorers, batch, pinned=True)[0].value
            for size, batch in ((1, work.batch_size), (WORKERS, work.batch_size), (WORKERS, WORKERS * work.batch_size))
        )
        arguments_of_one = session.store, work, scorers, work.batch_size, WORKERS
        both = on_ranks(1, measure_all, *arguments_of_one)[0].value
        record(figures, one, strong, weak, both)
    return finish(session, settings_of(work, graph=graph_settings(Store.open(session.store))), figures)


if __name__ == "__main__":
    main()
