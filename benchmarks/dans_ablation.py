"""DANS-KGC beside uniform and self-adversarial negatives, and without its parts, under the same time limit.

Quality, not speed: a preset with negatives and one worker, as many trainings side by side as there are cores, once for
each seed, ranked exactly on the test split.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import Session, begin, finish, graph_settings
from benchmarks.limited_time import run_variants
from distkg.config import load_config
from distkg.data.store.graph_store import Store

DANS: dict[str, dict[str, Any]] = {
    "DANS": {},
    "w/o difficulty schedule": {"diffusion": {"schedule": "same"}},
    "w/o conditions": {"diffusion": {"conditions": False}},
    "w/o curriculum": {"curriculum": "none"},
    "DANS, embeddings": {"negatives": "embedding"},
}
"""Row of the table → options of the source."""


ADVERSARIAL = ["objective.name=self_adversarial", "objective.temperature=1"]
SOFTMAX = ["objective.name=sampled_softmax"]


def dans(options: dict[str, Any]) -> list[str]:
    """Changes of a preset that take DANS with these options."""
    flow = yaml.safe_dump(options, default_flow_style=True, width=10_000).strip()
    return ["negatives.source=dans", f"negatives.options={flow}"]


VARIANTS: dict[str, list[str]] = {
    "uniform": [],
    "self-adversarial": ADVERSARIAL,
    **{row: dans(options) for row, options in DANS.items()},
    "DANS, self-adversarial": [*dans({}), *ADVERSARIAL],
    "softmax": SOFTMAX,
    "DANS, softmax": [*dans({}), *SOFTMAX],
}
"""Row of the table → changes of the preset."""


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every variant with every seed; ``--repetitions`` seeds."""
    session = begin(__file__, str(__doc__), arguments, "store", "preset", "seconds", repetitions=3)
    return compare(session, VARIANTS)


def compare(session: Session, variants: dict[str, list[str]]) -> Path:
    """Train a preset with every one of the changes, and write what came of it; returns the result file."""
    preset = session.options.preset
    some = list(variants)[: 3 if session.quick else None]
    figures = run_variants(session, f"preset:{preset}", {row: variants[row] for row in some})
    settings = {"preset": preset, "seconds": session.options.seconds, "variants": variants}
    settings |= {"configuration": load_config(f"preset:{preset}").model_dump()}
    settings["graph"] = graph_settings(Store.open(session.store))
    return finish(session, settings, figures, part=f"{preset}-{Path(session.store).name}")


if __name__ == "__main__":
    main()
