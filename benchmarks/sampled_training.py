"""Training with sampled negatives: triples per second beside PyKEEN's and the rooflines of the same repetition.

Two workers; negatives shared by chunks of 256 queries, or independent for every query; with the exchange of rows
before and after the computation, and overlapped with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import Figures, begin, finish, graph_settings, settings_of
from benchmarks.peers import run_pykeen
from benchmarks.processes import WORKERS, on_ranks
from benchmarks.rooflines import Rooflines, measure, together
from benchmarks.training_windows import SCORERS, TimedTraining, Window, Workload, sampled_config, shares
from distkg.data.store import Store
from distkg.sharding.ranks import Ranks

VARIANTS = {"shared": (True, False), "shared, overlapped": (True, True), "independent": (False, True)}
"""Name → whether negatives are shared, whether the exchange is overlapped."""

Measured = tuple[Rooflines, dict[tuple[str, str], Window]]


def measure_all(ranks: Ranks, store: str, work: Workload, scorers: list[str]) -> Measured:
    """The rooflines, then one window of these scorers in every variant; collective."""
    machine = measure(ranks)
    windows = {}
    for scorer in scorers:
        for shared in (True, False):
            config = sampled_config(scorer, store, work, work.batch_size * ranks.size, shared=shared)
            training = TimedTraining(config, ranks)
            steps = work.steps if shared else work.independent_steps
            for variant, (variant_shared, overlap) in VARIANTS.items():
                if variant_shared == shared:
                    windows[scorer, variant] = training.window(steps, overlap=overlap)
    return machine, windows


def record(figures: Figures, parts: list[Measured], peers: dict[str, float], work: Workload) -> None:
    """One repetition's figures; windows are those of the first rank."""
    machine = together(part[0] for part in parts)
    for (scorer, variant), window in parts[0][1].items():
        rate = window.triples_per_second
        share = shares(scorer, work, rate, machine, shared=VARIANTS[variant][0])
        figures.add(f"{scorer}, {variant}", {**window.columns(), "× PyKEEN": rate / peers[scorer], **share})
    for scorer, rate in peers.items():
        figures.add(f"{scorer}, PyKEEN", {"triples/s": rate})


def main(arguments: Sequence[str] | None = None) -> Path:
    """distkg and PyKEEN in turn, in every repetition."""
    session = begin(__file__, str(__doc__), arguments, "store")
    work = Workload.quick() if session.quick else Workload()
    scorers = ["DistMult"] if session.quick else list(SCORERS)
    figures = Figures()
    for _ in session.repetitions:
        parts = [finished.value for finished in on_ranks(WORKERS, measure_all, session.store, work, scorers)]
        peers = {
            scorer: run_pykeen("train", session.store, scorer=scorer, **work.for_pykeen()).rate for scorer in scorers
        }
        record(figures, parts, peers, work)
    settings = settings_of(work, workers=WORKERS, graph=graph_settings(Store.open(session.store)))
    return finish(session, settings, figures)


if __name__ == "__main__":
    main()
