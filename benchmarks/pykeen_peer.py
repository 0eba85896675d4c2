"""PyKEEN as a program of its own: its sampled training or its filtered evaluation on given triples.

Called by ``peers.py``. Imports nothing of distkg, so that its memory is PyKEEN's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pykeen.evaluation import RankBasedEvaluator
from pykeen.models import Model, model_resolver
from pykeen.training import SLCWATrainingLoop
from pykeen.training.callbacks import TrainingCallback
from pykeen.triples import CoreTriplesFactory

from benchmarks.peak_memory import peak_mb

EVALUATION_BATCH = 32

# PyKEEN counts complex numbers where a model has them: half as many for the same floats.
MODELS: dict[str, tuple[str, int, Mapping[str, Any]]] = {
    "DistMult": ("DistMult", 1, {}),
    "ComplEx": ("ComplEx", 2, {}),
    "TransE L2": ("TransE", 1, {"scoring_fct_norm": 2}),
    "TransE L1": ("TransE", 1, {"scoring_fct_norm": 1}),
    "RotatE": ("RotatE", 2, {}),
}

Graph = Mapping[str, np.ndarray]
"""train, valid, test: int [n, 3]; sizes: entities, relations."""


def start(graph: Graph) -> float:
    """Nothing: what remains is the memory of the libraries."""
    return 0.0


def train(graph: Graph, scorer: str, dim: int, batch_size: int, negatives: int, batches: int) -> float:
    """Positive triples per second of its sLCWA loop with its own defaults: margin loss, Adam, basic sampler.

    The first batch is not timed.
    """
    factory = _factory(graph, np.resize(graph["train"], (batches * batch_size, 3)))
    model = _model(scorer, factory, dim)
    loop = SLCWATrainingLoop(
        model=model,
        triples_factory=factory,
        optimizer=torch.optim.Adam(model.parameters()),
        negative_sampler="basic",
        negative_sampler_kwargs={"num_negs_per_pos": negatives},
    )
    clock = _BatchClock()
    loop.train(factory, num_epochs=1, batch_size=batch_size, use_tqdm=False, callbacks=clock, pin_memory=False)
    return (len(clock.ends) - 1) * batch_size / (clock.ends[-1] - clock.ends[0])


def evaluate(graph: Graph, scorer: str, dim: int, triples: int) -> float:
    """Queries per second of its filtered evaluator on ``triples`` test triples, two queries each, after warming up."""
    factory = _factory(graph, graph["train"])
    model = _model(scorer, factory, dim)
    known = [torch.from_numpy(graph[split]).long() for split in ("train", "valid", "test")]
    warm_up, timed = known[-1][:EVALUATION_BATCH], known[-1][EVALUATION_BATCH : EVALUATION_BATCH + triples]
    _rank(model, warm_up, known)
    begun = time.perf_counter()
    _rank(model, timed, known)
    return 2 * len(timed) / (time.perf_counter() - begun)


class _BatchClock(TrainingCallback):
    """Notes when each batch ends."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def post_batch(self, epoch: int, batch: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def _factory(graph: Graph, triples: np.ndarray) -> CoreTriplesFactory:
    entities, relations = graph["sizes"].tolist()
    return CoreTriplesFactory(torch.from_numpy(triples).long(), entities, relations)


def _model(scorer: str, factory: CoreTriplesFactory, dim: int) -> Model:
    name, floats, options = MODELS[scorer]
    return model_resolver.make(name, triples_factory=factory, embedding_dim=dim // floats, random_seed=0, **options)


def _rank(model: Model, triples: torch.Tensor, known: list[torch.Tensor]) -> None:
    RankBasedEvaluator(filtered=True).evaluate(
        model, triples, batch_size=EVALUATION_BATCH, use_tqdm=False, additional_filter_triples=known
    )


TASKS: dict[str, Callable[..., float]] = {"start": start, "train": train, "evaluate": evaluate}


def main() -> None:
    """``TASK GRAPH.npz THREADS OPTIONS``: prints {"rate", "peak_mb"} as its last line."""
    task, path, threads, options = sys.argv[1:]
    torch.set_num_threads(int(threads))
    with np.load(path) as graph:
        rate = TASKS[task](dict(graph), **json.loads(options))
    print(json.dumps({"rate": rate, "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
