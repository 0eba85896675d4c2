"""From one million entities to ten, and from one worker to two: time, memory, bytes and MRR beside the plan's.

Trains ComplEx in 64 dimensions on generated graphs, each worker pinned to a core of its own. Strong scaling keeps the
triples of a step, weak scaling those of a worker and step. A last row exchanges through sockets, as workers on several
machines do. On the smaller graph a row is a whole epoch, after which test triples are ranked: the MRR by workers.

Bytes are sent and received by a worker in a step. The plan's time is computed from this machine's rates, as by
``distkg plan``; memory is that of the largest worker, and the plan's has room for a Ray worker's process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import BenchmarkError, Figures, begin, finish, known_answers_of, rows_wanted, settings_of
from benchmarks.processes import alone, on_ranks
from benchmarks.training_windows import TimedTraining
from distkg.config import RunConfig, parse_config
from distkg.data.generate import generate
from distkg.data.store.graph_store import Store
from distkg.embedding.plan import bytes_per_step
from distkg.evaluation.metrics import ranking_metrics
from distkg.evaluation.ranking import rank_answers
from distkg.planning.preflight import plan_run
from distkg.sharding.ranks import Ranks


@dataclass(frozen=True)
class Graph:
    """A generated graph, the steps to time on it (0 for an epoch), and the test triples to rank afterwards."""

    entities: int
    triples: int
    steps: int
    ranked: int


@dataclass(frozen=True)
class Workload:
    """Sizes of the model and of a step."""

    dim: int = 64
    negatives: int = 128
    batch_size: int = 8192
    relations: int = 100


GRAPHS = {"1 M": Graph(1_000_000, 5_000_000, 0, 500), "10 M": Graph(10_000_000, 50_000_000, 200, 0)}
QUICK_GRAPHS = {"1 M": Graph(300, 3000, 0, 20), "10 M": Graph(600, 3000, 3, 0)}

WAYS = {"1 worker": (1, 1, True), "2 workers, strong": (2, 1, True), "2 workers, weak": (2, 2, True)}
WAYS["2 workers, sockets"] = (2, 1, False)
"""Row → number of workers, factor of the batch, and whether workers share memory."""

ROWS = [f"{graph}, {way}" for graph in GRAPHS for way in WAYS]


def configured(store: str, work: Workload, workers: int, batch_size: int) -> RunConfig:
    """Return an epoch of ComplEx with shared negatives."""
    return parse_config(
        {
            "data": {"store": store},
            "model": {"name": "complex", "dim": work.dim},
            "objective": {"name": "logistic"},
            "negatives": {"count": work.negatives},
            "optimizer": {"name": "rowwise_adagrad", "learning_rate": 0.1},
            "train": {"workers": workers, "epochs": 1, "batch_size": batch_size, "overlap": workers > 1},
            "evaluate": {"max_valid_triples": 100, "max_final_triples": 500},
        },
        "this benchmark",
    )


def train(ranks: Ranks, config: RunConfig, graph: Graph, share_memory: bool) -> dict[str, float]:
    """Train and rank on this rank; collective."""
    if not share_memory:
        ranks = Ranks.from_process_group(ranks.device, share_memory=False)
    training = TimedTraining(config, ranks)
    steps = graph.steps or training.batches.steps
    before = ranks.traffic.bytes
    window = training.window(steps, overlap=config.train.overlap)
    moved = (ranks.traffic.bytes - before) / (steps + min(8, steps))  # with the steps that warm up
    found = {**window.columns(), "MB/step": moved / 1e6}
    if graph.ranked:
        store = Store.open(config.data.store)
        triples = store.triples("test")[: graph.ranked]
        ranking = rank_answers(training.model, triples, known_answers_of(store, triples))
        found["MRR"] = ranking_metrics(ranking)["mrr"]
    return found


def measured(row: str, folder: Path, work: Workload, graphs: dict[str, Graph]) -> dict[str, float]:
    """Plan and measure a row of the table."""
    name, way = row.split(", ", 1)
    workers, factor, share_memory = WAYS[way]
    graph, config = graphs[name], configured(str(folder / name), work, workers, factor * work.batch_size)
    plan = plan_run(config)
    finished = on_ranks(workers, train, config, graph, share_memory, pinned=True)
    value, peak = finished[0].value, max(worker.peak_mb for worker in finished)
    assert plan.seconds_per_epoch is not None
    step_ms = 1e3 * plan.seconds_per_epoch / plan.steps
    return {
        **value,
        "foretold MB/step": bytes_per_step(config, Store.open(config.data.store).manifest) / 1e6,
        "foretold step ms": step_ms,
        "measured / foretold": value["step ms"] / step_ms,
        "peak MB": peak,
        "planned MB": plan.total_bytes / 1e6,
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every row in every repetition."""
    session = begin(__file__, str(__doc__), arguments, "folder", "variants", repetitions=1)
    work = Workload(dim=16, negatives=8, batch_size=256, relations=6) if session.quick else Workload()
    graphs, folder = QUICK_GRAPHS if session.quick else GRAPHS, Path(session.options.folder)
    if folder.exists():
        raise BenchmarkError(f"{folder} exists; name a new folder: graphs are made in it")
    rows = rows_wanted(session, ROWS)
    for name in {row.split(", ")[0] for row in rows}:
        alone(_generate, str(folder / name), graphs[name], work.relations)
    figures = Figures()
    for _ in session.repetitions:
        for row in rows:
            figures.add(row, found := measured(row, folder, work, graphs))
            print(f"{row}: {', '.join(f'{column} {value:.4g}' for column, value in found.items())}", flush=True)
    return finish(session, settings_of(work), figures)


def _generate(store: str, graph: Graph, relations: int) -> None:
    generate(store, entities=graph.entities, relations=relations, triples=graph.triples, seed=0)


if __name__ == "__main__":
    main()
