"""Drawing negatives ahead of time by actors: steps per second beside uniform negatives, and what is delivered.

One Ray Train worker and one actor with a core each. Every source is drawn in the step, then by the actor, then by the
actor while the step waits for it (``pool.sync``), which is the rate at which all of them are delivered; uniform
negatives, drawn for each query like the others, are the measure. The start of each run, when actors wait for the first
vectors and every query is new to them, is left out.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import Figures, begin, finish, graph_settings
from distkg.cluster.launch import launch_training
from distkg.config import RunConfig, load_config
from distkg.data.store.graph_store import Store
from distkg.reporting.run_record import read_run

DRAWN = {
    "uniform": ("uniform", "{}"),
    "relational": ("relational", "{integrate: true}"),
    "cached": ("cached", "{}"),
    "cached, refresh 4": ("cached", "{refresh: 4}"),
    "near_miss": ("near_miss", "{}"),
    "near_miss, refresh 20": ("near_miss", "{refresh: 20}"),
    "dans": ("dans", "{}"),
}
"""Row → source and its options."""
SETTLED = 0.5  # of a run's time is left out


WAYS = {
    "in the step": [],
    "by an actor": ["negatives.pool.actors=1"],
    "by an actor, waited for": ["negatives.pool.actors=1", "negatives.pool.sync=true"],
}
"""Who draws → changes of the configuration."""


def pool_config(preset: str, store: str, seconds: float, row: str, way: str, *, quick: bool) -> RunConfig:
    """One worker that trains for so many seconds, reporting as often as it can."""
    source, options = DRAWN[row]
    small = ["model.dim=8", "negatives.count=2"] if quick else []
    return load_config(
        f"preset:{preset}",
        [
            f"data.store={store}",
            f"train.time_limit_seconds={seconds}",
            "train.workers=1",
            "train.epochs=100000",
            "evaluate.every=100000",
            "checkpoint.every=100000",
            f"negatives.source={source}",
            f"negatives.options={options}",
            "negatives.filter=false",
            *WAYS[way],
            *small,
        ],
    )


def measure(config: RunConfig) -> dict[str, float]:
    """Steps per second and what became of the negatives, once the run has settled."""
    with tempfile.TemporaryDirectory() as folder:
        launch_training(config, Path(folder) / "run", listener=lambda record: None)
        lines = read_run(Path(folder) / "run").lines
    settled = [line for line in lines if line["time"] > SETTLED * lines[-1]["time"]]
    first, last = settled[0], settled[-1]
    columns = {"steps/s": (last["step"] - first["step"]) / max(last["time"] - first["time"], 1e-9)}
    came = [line["negatives"] for line in settled if line.get("negatives", {}).get("delivered") is not None]
    if not came:
        return columns
    ages = [line["age_median"] for line in came if line["age_median"] is not None]
    ways = {way: float(sum(line[way] for line in came)) for way in ("late", "old", "broken", "refused")}
    return {
        **columns,
        "delivered": statistics.mean(line["delivered"] for line in came),
        "age, median": statistics.median(ages) if ages else -1.0,
        "age, largest": max((line["age_max"] for line in came if line["age_max"] is not None), default=-1.0),
        **ways,
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every row in the step and by the actor, uniform negatives first and in the step alone."""
    session = begin(__file__, str(__doc__), arguments, "store", "preset", "seconds", repetitions=1)
    typed, figures = session.options, Figures()
    for _ in session.repetitions:
        uniform = 0.0
        for row in list(DRAWN)[: 2 if session.quick else None]:
            for way in list(WAYS)[: 1 if row == "uniform" else None]:
                config = pool_config(typed.preset, session.store, typed.seconds, row, way, quick=session.quick)
                columns = measure(config)
                uniform = uniform or columns["steps/s"]
                figures.add(f"{row}, {way}", {"× uniform's steps/s": columns["steps/s"] / uniform, **columns})
    settings = {"preset": typed.preset, "seconds": typed.seconds, "graph": graph_settings(Store.open(session.store))}
    return finish(session, settings, figures, part=f"{typed.preset}-{Path(session.store).name}")


if __name__ == "__main__":
    main()
