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
from benchmarks.rooflines import Rooflines, around, together
from benchmarks.training_windows import SCORERS, TimedTraining, Window, Workload, sampled_config, shares
from distkg.data.store.graph_store import Store
from distkg.sharding.ranks import Ranks

VARIANTS = {"shared": (True, False), "shared, overlapped": (True, True), "independent": (False, True)}
"""Name → whether negatives are shared, whether the exchange is overlapped."""

Measured = tuple[Rooflines, dict[str, Window]]


def measure_scorer(ranks: Ranks, scorer: str, store: str, work: Workload) -> Measured:
    """One window of every variant, with rooflines around them; collective."""
    return around(ranks, lambda: windows(ranks, scorer, store, work), work.roofline_seconds)


def windows(ranks: Ranks, scorer: str, store: str, work: Workload) -> dict[str, Window]:
    """Variant → window; collective."""
    found = {}
    for shared, steps in ((True, work.steps), (False, work.independent_steps)):
        config = sampled_config(scorer, store, work, work.batch_size * ranks.size, shared=shared)
        training = TimedTraining(config, ranks)
        for variant, (variant_shared, overlap) in VARIANTS.items():
            if variant_shared == shared:
                found[variant] = training.window(steps, overlap=overlap)
    return found


def record(figures: Figures, scorer: str, parts: list[Measured], peer: float, work: Workload) -> None:
    """One repetition's figures of a scorer; windows are those of the first worker."""
    machine = together(part[0] for part in parts)
    for variant, window in parts[0][1].items():
        rate = window.triples_per_second
        share = shares(scorer, work, rate, machine, shared=VARIANTS[variant][0])
        figures.add(f"{scorer}, {variant}", {**window.columns(), "× PyKEEN": rate / peer, **share})
    figures.add(f"{scorer}, PyKEEN", {"triples/s": peer})


def main(arguments: Sequence[str] | None = None) -> Path:
    """distkg and PyKEEN in turn, scorer by scorer, in every repetition."""
    session = begin(__file__, str(__doc__), arguments, "store")
    work = Workload.quick() if session.quick else Workload()
    scorers = ["DistMult"] if session.quick else list(SCORERS)
    figures = Figures()
    for _ in session.repetitions:
        for scorer in scorers:
            measured = on_ranks(WORKERS, measure_scorer, scorer, session.store, work)
            peer = run_pykeen("train", session.store, scorer=scorer, **work.for_pykeen())
            record(figures, scorer, [finished.value for finished in measured], peer.rate, work)
    settings = settings_of(work, workers=WORKERS, graph=graph_settings(Store.open(session.store)))
    return finish(session, settings, figures)


if __name__ == "__main__":
    main()
