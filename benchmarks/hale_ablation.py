"""HaLE with one of its parts taken away or replaced: test metrics under the same time limit, as in its paper's table 5.

Quality, not speed: each variant trains on two Ray Train workers from a preset, once for each seed, and is ranked
exactly on the test split. The figures of a row are one per seed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import Figures, begin, finish, graph_settings
from distkg.cluster.launch import launch_training
from distkg.config import RunConfig, load_config
from distkg.data.store import Store

VARIANTS: dict[str, list[str]] = {
    "HaLE": [],
    "w/o activation": ["objective.activation=none"],
    "w/o squared positives": ["objective.square_positives=false"],
    "w/o relation scalar": ["objective.relation_scale=false"],
    "SamNeg with activation": ["objective.name=logistic", "negatives.count=256"],
    "AllNeg with activation": ["objective.name=one_vs_all"],
}
"""Row of the table → changes of the preset."""

METRICS = {"mrr": "MRR", "hits@10": "Hits@10", "hits@1": "Hits@1"}


def variant_config(session_options: argparse.Namespace, store: str, changes: list[str], seed: int) -> RunConfig:
    """The preset under the time limit, with a variant's changes."""
    shared = [f"data.store={store}", f"train.time_limit_seconds={session_options.seconds}", f"train.seed={seed}"]
    small = ["train.workers=1", "train.epochs=1", "model.dim=8", "negatives.count=2"] if session_options.quick else []
    return load_config(f"preset:{session_options.preset}", shared + changes + small)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every variant with every seed; ``--repetitions`` seeds."""
    session = begin(__file__, str(__doc__), arguments, "store", "preset", "seconds", repetitions=1)
    figures = Figures()
    for seed in session.repetitions:
        for name, changes in VARIANTS.items():
            config = variant_config(session.options, session.store, changes, seed)
            with tempfile.TemporaryDirectory() as folder:
                result = launch_training(config, Path(folder) / "run")
            test, trained = result["metrics"]["test"], result["train"]
            shown = {column: test[metric] for metric, column in METRICS.items()}
            figures.add(name, {**shown, "epochs": trained["epochs"], "seconds": trained["seconds"]})
    settings = {"preset": session.options.preset, "seconds": session.options.seconds, "variants": VARIANTS}
    settings["graph"] = graph_settings(Store.open(session.store))
    return finish(session, settings, figures, part=session.options.preset)


if __name__ == "__main__":
    main()
