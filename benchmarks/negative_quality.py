"""What each negative source is worth: test metrics of the same training under the same time limit.

Quality, not speed: a preset with one worker, as many trainings side by side as there are cores, once for each seed,
ranked exactly on the test split. Sources are left out that need of a graph what it lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.common import begin, finish, graph_settings, rows_wanted
from benchmarks.limited_time import run_variants
from distkg.config import load_config
from distkg.data.store.graph_store import Store
from distkg.negatives import SOURCES, Queries, SourceError, TrainingGraph, make_source
from distkg.negatives.base import parse_source_options
from distkg.negatives.model_based.cached import RememberedSource

POOLS = 1000  # training queries whose pools are counted
INTEGRATE = {"integrate": True}
HARDER = [{"source": "uniform"}, {"source": "near_miss", "weight": [[0, 0], [0.5, 0], [0.75, 1]]}]
HALVES = [{"source": "uniform"}, {"source": "corrupt"}]
DRAWN: dict[str, tuple[str, dict[str, Any]]] = {
    "uniform": ("uniform", {}),
    "degree": ("degree", {}),
    "bernoulli": ("bernoulli", {}),
    "corrupt": ("corrupt", {}),
    "typed": ("typed", INTEGRATE),
    "classes": ("classes", INTEGRATE),
    "relational": ("relational", INTEGRATE),
    "k_hop": ("k_hop", {}),
    "nearest_neighbour": ("nearest_neighbour", {}),
    "near_miss": ("near_miss", {}),
    "cached": ("cached", {}),
    "dans": ("dans", {}),
    "half uniform, half corrupt": ("mixture", {"parts": HALVES}),
    "uniform, then near_miss": ("mixture", {"parts": HARDER}),
}
"""Row of the table → source and its options."""
SELF_ADVERSARIAL = "uniform, self-adversarial"


def pools_for(graph: TrainingGraph, only: Sequence[str] | None = None) -> dict[str, float]:
    """Row → mean pool, of the sources that this graph has what they need for."""
    found = {}
    for name in DRAWN if only is None else only:
        with suppress(SourceError):
            found[name] = mean_pool(graph, *DRAWN[name])
    return found


def _changes(source: str, options: dict[str, Any]) -> list[str]:
    flow = yaml.safe_dump(options, default_flow_style=True, width=10_000).strip()
    return [f"negatives.source={source}", f"negatives.options={flow}"]


def mean_pool(graph: TrainingGraph, source: str, options: dict[str, Any]) -> float:
    """Entities that a query's negatives are drawn from, on average; of what asks the model, as many as it remembers."""
    kind = SOURCES[source]
    if issubclass(kind, RememberedSource):
        return float(kind.width(parse_source_options(source, options)))
    if source == "mixture":
        return max(mean_pool(graph, part["source"], part.get("options", {})) for part in options["parts"])
    queries = torch.from_numpy(graph.queries())
    some = queries[torch.randperm(len(queries), generator=torch.Generator().manual_seed(0))[:POOLS]]
    sizes = make_source(source, options, graph).pool_sizes(Queries(*some.T.contiguous()))
    return float(sizes.double().mean())


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every source with every seed; ``--repetitions`` seeds."""
    session = begin(__file__, str(__doc__), arguments, "store", "preset", "seconds", "variants", repetitions=1)
    store, preset = Store.open(session.store), f"preset:{session.options.preset}"
    rows = ["uniform", "corrupt"] if session.quick else rows_wanted(session, [*DRAWN, SELF_ADVERSARIAL])
    pools = pools_for(TrainingGraph.of_store(store), [row for row in rows if row in DRAWN])
    variants = {name: _changes(*DRAWN[name]) for name in pools}
    if SELF_ADVERSARIAL in rows:
        margin = [] if load_config(preset).objective.name == "self_adversarial" else ["objective.margin=3"]
        variants[SELF_ADVERSARIAL] = ["objective.name=self_adversarial", "objective.temperature=1", *margin]
    figures = run_variants(session, preset, variants)
    for name in variants:
        figures.add(name, {"pool": pools.get(name, store.num_entities)})
    settings = {
        "preset": session.options.preset,
        "configuration": load_config(preset).model_dump(),
        "seconds": session.options.seconds,
        "variants": variants,
        "graph": graph_settings(store),
    }
    return finish(session, settings, figures, part=f"{session.options.preset}-{Path(session.store).name}")


if __name__ == "__main__":
    main()
