"""Exact filtered evaluation: queries per second beside plain PyTorch, PyKEEN and the rooflines of the repetition.

DistMult on two workers; every test triple is two queries, ranked among all entities. ``ranking`` has the known
answers at hand, as plain PyTorch does; ``whole`` is what ``distkg evaluate`` computes, from reading the store to
metrics by side, category and relation. PyKEEN ranks a sample, as it would take minutes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Figures, begin, finish, graph_settings, known_answers_of, settings_of
from benchmarks.peers import run_pykeen
from benchmarks.processes import WORKERS, alone, on_ranks
from benchmarks.rooflines import QUICK_SECONDS, SECONDS, Rooflines, around, together
from distkg.config import RunConfig, parse_config
from distkg.data.store.graph_store import Store
from distkg.data.store.known_answers import KnownAnswers
from distkg.embedding.model import TrainingModel
from distkg.evaluation.metrics import evaluate_triples
from distkg.evaluation.ranking import both_queries, rank_answers
from distkg.kernels.counting import hide_cells, known_cells
from distkg.sharding.ranks import Ranks

_WARM_UP = 64


@dataclass(frozen=True)
class Workload:
    """Sizes: real floats per entity, queries ranked together, triples that PyKEEN ranks, seconds per roofline."""

    dim: int = 256
    batch_size: int = 256
    peer_triples: int = 64
    roofline_seconds: float = SECONDS

    def for_pykeen(self) -> dict[str, Any]:
        """The same work, on fewer triples, as options of ``pykeen_peer.evaluate``."""
        return {"scorer": "DistMult", "dim": self.dim, "triples": self.peer_triples}

    @classmethod
    def quick(cls) -> Workload:
        return cls(dim=16, batch_size=64, peer_triples=8, roofline_seconds=QUICK_SECONDS)


Measured = tuple[Rooflines, dict[str, float]]


def evaluated_config(store: str, work: Workload) -> RunConfig:
    """A model with vectors as they are before training: ranking takes as long whatever they are."""
    return parse_config(
        {
            "data": {"store": store},
            "model": {"name": "distmult", "dim": work.dim},
            "optimizer": {"name": "rowwise_adagrad"},
        },
        "this benchmark",
    )


def measure_all(ranks: Ranks, store: str, work: Workload) -> Measured:
    """Queries per second by ``ranking`` and ``whole``, with rooflines around them; collective."""
    return around(ranks, lambda: rates(ranks, store, work), work.roofline_seconds)


def rates(ranks: Ranks, store: str, work: Workload) -> dict[str, float]:
    """Queries per second of ranking alone and of a whole evaluation; collective."""
    graph = Store.open(store)
    model = TrainingModel(evaluated_config(store, work), graph.num_entities, graph.num_relations, ranks)
    triples = graph.triples("test")
    known = known_answers_of(graph, triples)
    rank_answers(model, triples[:_WARM_UP], known, batch_size=work.batch_size)
    ranks.barrier()
    start = time.perf_counter()
    rank_answers(model, triples, known, batch_size=work.batch_size)
    ranked = time.perf_counter()
    evaluate_triples(model, graph, "test", batch_size=work.batch_size)
    ended = time.perf_counter()
    return {"ranking": 2 * len(triples) / (ranked - start), "whole": 2 * len(triples) / (ended - ranked)}


def plain_rate(store: str, work: Workload) -> float:
    """Queries per second of ``count_plainly`` in one process."""
    graph = Store.open(store)
    triples = graph.triples("test")
    known = known_answers_of(graph, triples)
    entities, relations = (torch.randn(n, work.dim) for n in (graph.num_entities, 2 * graph.num_relations))
    count_plainly(entities, relations, triples[:_WARM_UP], known, work.batch_size)
    start = time.perf_counter()
    count_plainly(entities, relations, triples, known, work.batch_size)
    return 2 * len(triples) / (time.perf_counter() - start)


def count_plainly(
    entities: Tensor, relations: Tensor, triples: np.ndarray, known: KnownAnswers, batch_size: int
) -> Tensor:
    """How many entities DistMult scores above each answer, known facts left out, by a product and a comparison.

    Args:
        entities: float32 [N, d].
        relations: float32 [2R, d].
        triples: int32 [n, 3]; tail queries first, then head queries.
        known: answers to leave out.
        batch_size: queries compared together.

    Returns:
        int64 [2n].
    """
    queries, answers = both_queries(triples, len(relations) // 2)
    starts, ends = known.rows(queries[:, 0], queries[:, 1])
    asked, answer = torch.from_numpy(queries).long(), torch.from_numpy(answers).long()
    greater = torch.empty(len(asked), dtype=torch.int64)
    for low in range(0, len(asked), batch_size):
        part = slice(low, low + batch_size)
        scores = (entities[asked[part, 0]] * relations[asked[part, 1]]) @ entities.T
        target = scores.gather(1, answer[part, None])
        hide_cells(scores, known_cells(known.answers, starts[part], ends[part], 0, len(entities)))
        greater[part] = (scores > target).sum(1)
    return greater


def record(figures: Figures, parts: list[Measured], plain: float, peer: float, flops_per_query: int) -> None:
    """One repetition's figures."""
    machine = together(part[0] for part in parts)
    for name, rate in {**parts[0][1], "plain PyTorch": plain, "PyKEEN": peer}.items():
        figures.add(
            f"distkg, {name}" if name in parts[0][1] else name,
            {
                "queries/s": rate,
                "× plain PyTorch": rate / plain,
                "× PyKEEN": rate / peer,
                "% oneDNN": 100 * rate * flops_per_query / machine.onednn,
                "% torch.mm": 100 * rate * flops_per_query / machine.torch_mm,
            },
        )


def main(arguments: Sequence[str] | None = None) -> Path:
    """distkg, plain PyTorch and PyKEEN in turn, in every repetition."""
    session = begin(__file__, str(__doc__), arguments, "store")
    work = Workload.quick() if session.quick else Workload()
    store = Store.open(session.store)
    figures = Figures()
    for _ in session.repetitions:
        parts = [finished.value for finished in on_ranks(WORKERS, measure_all, session.store, work)]
        plain = alone(plain_rate, session.store, work).value
        peer = run_pykeen("evaluate", session.store, **work.for_pykeen()).rate
        record(figures, parts, plain, peer, 2 * store.num_entities * work.dim)
    return finish(session, settings_of(work, workers=WORKERS, graph=graph_settings(store)), figures)


if __name__ == "__main__":
    main()
