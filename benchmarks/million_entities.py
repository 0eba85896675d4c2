"""A generated graph of a million entities and ten million triples, end to end on two Ray Train workers.

Generates the store in a fresh process, trains one epoch of ComplEx through the launcher of ``distkg train``, and
ranks 1,000 test queries exactly among all entities. A worker's memory is held against its half of the entity
table and of the optimizer's state.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import BenchmarkError, Figures, begin, finish, known_answers_of, settings_of
from benchmarks.peak_memory import peak_mb
from benchmarks.processes import WORKERS, alone
from distkg.config import RunConfig, parse_config
from distkg.data.generate import generate
from distkg.embedding.learner import EmbeddingLearner
from distkg.embedding.model import TrainingModel
from distkg.evaluation.ranking import rank_answers
from distkg.process_memory import keep_freed_memory
from distkg.sharding.ranks import Ranks
from distkg.training.run import Listener, Training
from distkg.training.run_dir import RunFolder
from distkg.training.services import Services


@dataclass(frozen=True)
class Workload:
    """Sizes of the graph and of the run; ``queries`` is how many are validated, and how many ranked at the end."""

    entities: int = 1_000_000
    relations: int = 100
    triples: int = 10_000_000
    dim: int = 128
    negatives: int = 256
    batch_size: int = 8192
    queries: int = 1000
    seed: int = 0

    @classmethod
    def quick(cls) -> Workload:
        return cls(entities=300, relations=6, triples=3000, dim=16, negatives=16, batch_size=256, queries=20)


def make_graph(store: str, work: Workload) -> float:
    """Generate the store; gives the seconds that it took."""
    start = time.perf_counter()
    generate(store, entities=work.entities, relations=work.relations, triples=work.triples, seed=work.seed)
    return time.perf_counter() - start


def one_epoch(store: str, work: Workload) -> RunConfig:
    """An epoch of ComplEx with shared negatives."""
    return parse_config(
        {
            "data": {"store": store},
            "model": {"name": "complex", "dim": work.dim},
            "objective": {"name": "logistic"},
            "negatives": {"count": work.negatives // 2},
            "optimizer": {"name": "rowwise_adagrad"},
            "train": {"workers": WORKERS, "epochs": 1, "batch_size": work.batch_size, "overlap": True},
            "evaluate": {"max_valid_triples": work.queries // 2},
        },
        "this benchmark",
    )


def train_and_rank(
    config: RunConfig, run: Path, ranks: Ranks, *, resume: bool, listener: Listener | None, services: Services
) -> dict[str, float]:
    """Train as ``distkg train`` does, validation and checkpoint included, then time the ranking; collective."""
    keep_freed_memory()
    training = Training(config, RunFolder(run), ranks, listener, services)
    learner = training.learner
    assert isinstance(learner, EmbeddingLearner)
    start = time.perf_counter()
    training.train()
    training.checkpoints.wait()
    trained = time.perf_counter()
    peak = _largest(peak_mb(), ranks)
    triples = learner.store.triples("test")[: config.evaluate.max_valid_triples]
    begun = time.perf_counter()
    ranking = rank_answers(learner.model, triples, known_answers_of(learner.store, triples))
    seconds = time.perf_counter() - begun
    return {
        "training seconds": trained - start,
        "training triples/s": learner.triples_per_epoch / (trained - start),
        "training peak MB per worker": peak,
        "table and optimizer MB per worker": _largest(_table_mb(learner.model), ranks),
        "ranking queries/s": len(ranking.answers) / seconds,
        "ranking peak MB per worker": _largest(peak_mb(), ranks),
        "queries ranked": float(len(ranking.answers)),
    }


def _table_mb(model: TrainingModel) -> float:
    """This rank's rows with the state of their optimizer."""
    table = model.entities
    states = table.optimizer.state.values() if table.optimizer else []
    return sum(tensor.nbytes for tensor in (table.local, *states)) / 1e6


def _largest(value: float, ranks: Ranks) -> float:
    found = torch.tensor(value, dtype=torch.float64)
    ranks.all_reduce(found, "max")
    return float(found)


def repetition(folder: Path, work: Workload) -> dict[str, float]:
    """Everything once, in a new folder."""
    from distkg.cluster.launch import run_on_workers  # here, so that the generating process does not import Ray

    if folder.exists():
        raise BenchmarkError(f"{folder} exists; name a new folder: the graph and the run are made in it")
    store = str(folder / "store")
    made = alone(make_graph, store, work)
    trained: dict[str, Any] = run_on_workers(train_and_rank, one_epoch(store, work), folder / "run")
    beyond = trained["ranking peak MB per worker"] - trained["table and optimizer MB per worker"]
    return {
        "generating seconds": made.value,
        "generating peak MB": made.peak_mb,
        **trained,
        "MB per worker beyond table and optimizer": beyond,
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Each repetition in a numbered folder of its own."""
    session = begin(__file__, str(__doc__), arguments, "folder", repetitions=1)
    work = Workload.quick() if session.quick else Workload()
    figures = Figures()
    for number in session.repetitions:
        for row, value in repetition(Path(session.options.folder) / str(number), work).items():
            figures.add(row, {"": value})
    return finish(session, settings_of(work, workers=WORKERS), figures)


if __name__ == "__main__":
    main()
