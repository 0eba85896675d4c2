"""A foundation model that looks at a sampled part of a graph around each batch's anchors, beside all of it.

Ranks of test triples, and time per query, as fewer facts of an entity are followed at each step. Where an answer lies
outside of the part it scores as an entity without facts, so ranks suffer as the part shrinks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import Figures, begin, finish, graph_settings, known_answers_of
from benchmarks.processes import alone
from benchmarks.zero_shot import BATCH_SIZE, columns_of, some_test_triples
from distkg.data.store.graph_store import Store
from distkg.evaluation.ranking import rank_by_scores
from distkg.foundation.model_files import load_model
from distkg.foundation.zero_shot import reasoner_of

TRIPLES = 200  # of the test split
FANOUTS: dict[str, list[int]] = {
    "the whole graph": [],
    "200, 100, 50, 20, 10, 5": [200, 100, 50, 20, 10, 5],
    "50, 50, 20, 10": [50, 50, 20, 10],
    "50, 20, 10": [50, 20, 10],
    "20, 10": [20, 10],
    "10": [10],
}
"""Row → facts followed at each step."""


def _measured(model: str, address: str, fanouts: list[int], triples: int) -> dict[str, float]:
    loaded, store = load_model(Path(model)), Store.open_inference(address)
    reasoner, chosen = reasoner_of(loaded, store, fanouts), some_test_triples(store, triples)
    known = known_answers_of(store, chosen)
    reasoner.scores(np.zeros((1, 2), np.int64))  # what is made of the graph is made once
    started = time.perf_counter()
    ranking = rank_by_scores(reasoner.scores, chosen, known, store.num_relations, batch_size=BATCH_SIZE)
    seconds = time.perf_counter() - started
    asked = len(np.unique(ranking.queries, axis=0))
    return {**columns_of(ranking), "ms/query": 1e3 * seconds / asked}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every row, one after the other."""
    session = begin(__file__, str(__doc__), arguments, "model", "store", repetitions=1)
    model, figures = str(session.options.model), Figures()
    for row, fanouts in FANOUTS.items():
        figures.add(row, alone(_measured, model, session.store, fanouts, 4 if session.quick else TRIPLES).value)
    store = Store.open_inference(session.store)
    settings = {"model": load_model(Path(model)).name, "triples": TRIPLES, "graph": graph_settings(store)}
    return finish(session, settings, figures, part=Path(session.store).name)


if __name__ == "__main__":
    main()
