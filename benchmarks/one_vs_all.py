"""1-vs-all training: triples per second, and useful operations as a share of the matrix products of the machine.

Two workers, DistMult. Useful are three products per step, 6·B·N·D operations for B queries, N entities and D
dimensions; whatever else a step does counts as time only. Grouped, equal queries are asked once with all their
answers, so that a triple costs fewer of them. Every step has the same number of queries either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import Figures, begin, finish, graph_settings, settings_of
from benchmarks.processes import WORKERS, on_ranks
from benchmarks.rooflines import QUICK_SECONDS, SECONDS, Rooflines, around, together
from benchmarks.training_windows import TimedTraining, Window
from distkg.config import RunConfig, parse_config
from distkg.data.store.graph_store import Store
from distkg.embedding.plan import count_distinct_queries
from distkg.sharding.ranks import Ranks

VARIANTS = [(grouped, products) for grouped in (False, True) for products in ("float32", "bfloat16")]
_USEFUL = 6


@dataclass(frozen=True)
class Workload:
    """Sizes: real floats per entity, queries per step over all workers, timed steps, seconds per roofline."""

    dim: int = 256
    queries: int = 1024
    steps: int = 8
    roofline_seconds: float = SECONDS

    @classmethod
    def quick(cls) -> Workload:
        return cls(dim=16, queries=64, steps=2, roofline_seconds=QUICK_SECONDS)


Measured = dict[tuple[bool, str], tuple[Rooflines, Window]]


def all_entities_config(store: str, work: Workload, *, grouped: bool, products: str) -> RunConfig:
    """``queries`` queries per step: a triple is two, a group is one."""
    return parse_config(
        {
            "data": {"store": store},
            "model": {"name": "distmult", "dim": work.dim},
            "objective": {"name": "one_vs_all", "group_answers": grouped, "products": products},
            "optimizer": {"name": "rowwise_adagrad"},
            "train": {"batch_size": work.queries if grouped else work.queries // 2},
        },
        "this benchmark",
    )


def measure_all(ranks: Ranks, store: str, work: Workload) -> Measured:
    """One window of every variant, each with rooflines around it; collective."""
    return {variant: measure_variant(ranks, store, work, *variant) for variant in VARIANTS}


def measure_variant(ranks: Ranks, store: str, work: Workload, grouped: bool, products: str) -> tuple[Rooflines, Window]:
    """A window with rooflines around it; collective."""
    training = TimedTraining(all_entities_config(store, work, grouped=grouped, products=products), ranks)
    return around(ranks, lambda: training.window(work.steps), work.roofline_seconds)


def columns(window: Window, machine: Rooflines, queries_per_triple: float, terms: int) -> dict[str, float]:
    """Figures of a window; ``terms`` is N·D."""
    queries = window.triples_per_second * queries_per_triple
    flops = _USEFUL * queries * terms
    return {
        **window.columns(),
        "queries/s": queries,
        "useful Gflop/s": flops / 1e9,
        "% oneDNN": 100 * flops / machine.onednn,
        "% torch.mm": 100 * flops / machine.torch_mm,
        "% bfloat16": 100 * flops / machine.bfloat16,
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every variant in every repetition."""
    session = begin(__file__, str(__doc__), arguments, "store")
    work = Workload.quick() if session.quick else Workload()
    store = Store.open(session.store)
    triples = store.manifest.triples["train"]
    distinct = count_distinct_queries(store.iter_triples(["train"]), store.num_relations)
    figures = Figures()
    for _ in session.repetitions:
        parts = [finished.value for finished in on_ranks(WORKERS, measure_all, session.store, work)]
        for grouped, products in VARIANTS:
            machine = together(part[grouped, products][0] for part in parts)
            _, window = parts[0][grouped, products]
            row = f"{'grouped' if grouped else 'one by one'}, {products}"
            per_triple = distinct / triples if grouped else 2.0
            figures.add(row, columns(window, machine, per_triple, store.num_entities * work.dim))
    settings = settings_of(work, workers=WORKERS, graph=graph_settings(store), distinct_queries=distinct)
    return finish(session, settings, figures)


if __name__ == "__main__":
    main()
