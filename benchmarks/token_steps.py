"""Time of a training step of TOFU, which reads tokens of texts and numbers beside the graph, in that of ULTRA's.

Real steps (batch, hidden facts, negatives, gradients, optimizer) of both in one process of one thread, in turns, so
that both meet the same machine; needs a store with tokens ``text`` and ``numeric``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common import Figures, begin, finish, graph_settings
from benchmarks.multimodal import BATCH_SIZE, WIDTHS
from distkg.config import load_config
from distkg.data.store.graph_store import Store
from distkg.foundation.learner import FoundationLearner
from distkg.process_memory import keep_freed_memory
from distkg.sharding.ranks import Ranks
from distkg.training.schedule import Schedule

STEPS = 3  # of a repetition
ULTRA = "ULTRA"
ROWS = {
    ULTRA: ["model.name=ultra", "model.options={}"],
    "TOFU, no tokens": ["model.options={modalities: {}, prompts: 5}"],
    "TOFU, text": [f"model.options={{modalities: {{text: {WIDTHS['text']}}}}}"],
    "TOFU, text and numeric": [],
    "TOFU, all": ["model.options.prompts=5"],
}
"""Row → changes of the preset ``tofu``; in a step nothing is dropped, as most time is then taken."""


class Steps:
    """A training that goes on by a few steps at a time."""

    def __init__(self, store: str, changes: Sequence[str], quick: bool) -> None:
        shared = [f"data.graphs=[{store}]", "train.workers=1", f"train.batch_size={BATCH_SIZE}"]
        whole = [] if ROWS[ULTRA] == changes else ["model.options.dropout=0"]
        small = ["model.options.width=8", "model.options.layers=2"] if quick else []
        config = load_config("preset:tofu", [*shared, *changes, *whole, *small])
        self._learner = FoundationLearner(config, Ranks.single(), Schedule(config.optimizer, config.train.epochs))
        self._done = 0

    def ms(self) -> float:
        """Of a step, on average over a few."""
        start = time.perf_counter()
        self._learner.loop.run(0, self._done, self._done + STEPS, lambda step: True)
        self._done += STEPS
        return 1e3 * (time.perf_counter() - start) / STEPS


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every row in turn, after a first time that compiles."""
    session = begin(__file__, str(__doc__), arguments, "store", repetitions=5)
    torch.set_num_threads(1)
    keep_freed_memory()  # as a run does
    trainings = {row: Steps(session.store, changes, session.quick) for row, changes in ROWS.items()}
    figures = Figures()
    for repetition in range(-1, len(session.repetitions)):
        found = {row: training.ms() for row, training in trainings.items()}
        if repetition >= 0:
            for row, ms in found.items():
                figures.add(row, {"step ms": ms, "× ULTRA": ms / found[ULTRA]})
    settings = {"batch_size": BATCH_SIZE, "threads": 1, "graph": graph_settings(Store.open(session.store))}
    return finish(session, settings, figures)


if __name__ == "__main__":
    main()
