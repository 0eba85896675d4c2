"""What negatives of each source cost: training beside the same training with uniform ones, in the same repetition.

Two workers, RotatE and ComplEx, 10 negatives for each query, drawn for each query. Sources that need classes are left
out where the store has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Figures, begin, finish, graph_settings, settings_of
from benchmarks.processes import WORKERS, on_ranks
from benchmarks.training_windows import TimedTraining, Window, Workload
from distkg.config import RunConfig, parse_config
from distkg.data.store.graph_store import Store
from distkg.embedding.batches import SampledBatches
from distkg.negatives import Queries
from distkg.sharding.ranks import Ranks

NEGATIVES, POOLS = 10, 1000
MIXED = [{"source": "uniform"}, {"source": "relational", "options": {"integrate": True}}]
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "uniform": ("uniform", {}),
    "degree": ("degree", {}),
    "bernoulli": ("bernoulli", {}),
    "corrupt": ("corrupt", {}),
    "typed": ("typed", {"integrate": True}),
    "classes": ("classes", {"integrate": True}),
    "relational": ("relational", {"integrate": True}),
    "k_hop, compiled": ("k_hop", {}),
    "k_hop, DGL": ("k_hop", {"sampler": "dgl"}),
    "half uniform, half relational": ("mixture", {"parts": MIXED}),
    "nearest_neighbour": ("nearest_neighbour", {}),
    "near_miss": ("near_miss", {}),
    "cached": ("cached", {}),
}
"""Row of the table → source and its options."""
NEED_CLASSES = ("typed", "classes")
SCORERS = ("rotate", "complex")


def source_config(scorer: str, source: str, store: str, work: Workload) -> RunConfig:
    """Training with independent negatives of a source."""
    name, options = SOURCES[source]
    return parse_config(
        {
            "data": {"store": store},
            "model": {"name": scorer, "dim": work.dim},
            "objective": {"name": "logistic"},
            "negatives": {"source": name, "options": options, "count": work.negatives, "shared": False},
            "optimizer": {"name": "rowwise_adagrad"},
            "train": {"batch_size": work.batch_size * WORKERS},
        },
        "this benchmark",
    )


def measure(ranks: Ranks, config: RunConfig, steps: int) -> tuple[Window, float]:
    """Timed steps, and the mean pool of some training queries; collective."""
    training = TimedTraining(config, ranks)
    window = training.window(min(steps, training.batches.steps))
    assert isinstance(training.batches, SampledBatches)
    source = training.batches.source
    queries = torch.from_numpy(source.graph.queries())
    some = queries[torch.randperm(len(queries), generator=torch.Generator().manual_seed(0))[:POOLS]]
    return window, float(source.pool_sizes(Queries(*some.T.contiguous())).double().mean())


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every source in turn, each repetition from the first to the last."""
    session = begin(__file__, str(__doc__), arguments, "store", repetitions=3)
    work = Workload(dim=256, negatives=NEGATIVES, steps=60) if not session.quick else Workload.quick()
    store = Store.open(session.store)
    names = [name for name in SOURCES if name not in NEED_CLASSES or store.classes() is not None]
    figures = Figures()
    for _ in session.repetitions:
        for scorer in SCORERS[: 1 if session.quick else None]:
            uniform = 0.0
            for name in names[: 2 if session.quick else None]:
                config = source_config(scorer, name, session.store, work)
                finished = on_ranks(WORKERS, measure, config, work.steps)
                window, pool = finished[0].value
                uniform = uniform or window.step_ms
                columns = {**window.columns(), "× uniform's time": window.step_ms / uniform, "pool": pool}
                figures.add(f"{scorer}, {name}", columns)
    return finish(session, settings_of(work, workers=WORKERS, graph=graph_settings(store)), figures)


if __name__ == "__main__":
    main()
