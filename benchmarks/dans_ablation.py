"""DANS-KGC beside uniform and self-adversarial negatives, and without its parts, under the same time limit.

Quality, not speed: a preset with negatives, two Ray Train workers, once for each seed, ranked exactly on the test
split.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import begin, finish, graph_settings
from benchmarks.limited_time import run_variants
from distkg.config import load_config
from distkg.data.store import Store

DANS: dict[str, dict[str, Any]] = {
    "DANS": {},
    "w/o difficulty schedule": {"diffusion": {"schedule": "same"}},
    "w/o conditions": {"diffusion": {"conditions": False}},
    "w/o curriculum": {"curriculum": "none"},
    "DANS, embeddings": {"negatives": "embedding"},
}
"""Row of the table → options of the source."""


def _flow(options: dict[str, Any]) -> str:
    return yaml.safe_dump(options, default_flow_style=True, width=10_000).strip()


VARIANTS: dict[str, list[str]] = {
    "uniform": [],
    "self-adversarial": ["objective.name=self_adversarial"],
    **{row: ["negatives.source=dans", f"negatives.options={_flow(options)}"] for row, options in DANS.items()},
}
"""Row of the table → changes of the preset."""


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every variant with every seed; ``--repetitions`` seeds."""
    session = begin(__file__, str(__doc__), arguments, "store", "preset", "seconds", repetitions=3)
    preset = session.options.preset
    some = list(VARIANTS)[: 3 if session.quick else None]
    figures = run_variants(session, f"preset:{preset}", {row: VARIANTS[row] for row in some})
    settings = {"preset": preset, "seconds": session.options.seconds, "variants": VARIANTS}
    settings |= {"configuration": load_config(f"preset:{preset}").model_dump()}
    settings["graph"] = graph_settings(Store.open(session.store))
    return finish(session, settings, figures, part=f"{preset}-{Path(session.store).name}")


if __name__ == "__main__":
    main()
