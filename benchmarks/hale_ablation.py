"""HaLE with one of its parts taken away or replaced: test metrics under the same time limit, as in its paper's table 5.

Quality, not speed: each variant trains on two Ray Train workers from a preset, once for each seed, and is ranked
exactly on the test split. The figures of a row are one per seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import begin, finish, graph_settings
from benchmarks.limited_time import run_variants
from distkg.data.store.graph_store import Store

VARIANTS: dict[str, list[str]] = {
    "HaLE": [],
    "w/o activation": ["objective.activation=none"],
    "w/o squared positives": ["objective.square_positives=false"],
    "w/o relation scalar": ["objective.relation_scale=false"],
    "SamNeg with activation": ["objective.name=logistic", "negatives.count=256"],
    "AllNeg with activation": ["objective.name=one_vs_all"],
}
"""Row of the table → changes of the preset."""


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every variant with every seed; ``--repetitions`` seeds."""
    session = begin(__file__, str(__doc__), arguments, "store", "preset", "seconds", repetitions=1)
    figures = run_variants(session, f"preset:{session.options.preset}", VARIANTS)
    settings = {"preset": session.options.preset, "seconds": session.options.seconds, "variants": VARIANTS}
    settings["graph"] = graph_settings(Store.open(session.store))
    return finish(session, settings, figures, part=session.options.preset)


if __name__ == "__main__":
    main()
