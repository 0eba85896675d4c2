"""KMAS beside uniform and corrupt negatives: foundation models trained in equal steps, asked about unseen graphs.

Quality, not speed: every variant and seed is trained on ``--graphs`` in one process of one thread, as many side by
side as there are cores, then ranks test triples of ``--stores`` with the model of its best validation. One more row
has the model that training begins with. Differences from uniform negatives come with a paired bootstrap over graphs.
``--folder`` keeps what is done: the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Figures, begin, finish, graph_settings, rows_wanted
from benchmarks.processes import side_by_side
from benchmarks.zero_shot import columns_of, named, rank_test
from distkg.config import RunConfig, load_config
from distkg.data.store import Store
from distkg.foundation import FoundationModel, load_model, make_model
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank

VARIANTS = {
    "uniform": ["negatives.source=uniform"],
    "corrupt": ["negatives.source=mixture", "negatives.options={parts: [{source: uniform}, {source: corrupt}]}"],
    "kmas_constant": ["negatives.source=kmas", "negatives.options={schedule: constant}"],
    "kmas": ["negatives.source=kmas"],
}
"""Row → what it changes. Half of the negatives are hard in all but the first; in the last that share rises from none,
and falls again."""
UNTRAINED = "untrained"
BATCH_SIZE = 16
TRIPLES = 250  # of each graph's test split
RESAMPLES = 10_000
Outcome = dict[str, Any]


def _outcome(job: tuple[RunConfig, list[str], Path, int | None]) -> Outcome:
    """Trained, and asked: read from the folder where that is done."""
    config, stores, folder, triples = job
    done = folder / "outcome.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    torch.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)
    started = time.process_time()
    result = train_on_rank(config, folder, Ranks.single())
    seconds = time.process_time() - started
    found: Outcome = {
        "CPU ms/step": 1e3 * seconds / (config.train.epochs * (config.train.steps_per_epoch or 1)),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "validation MRR": result["metrics"].get("valid", {}).get("mrr", float("nan")),
        "graphs": _asked(load_model(folder), stores, triples),
    }
    part = done.with_suffix(".part")
    part.write_text(json.dumps(found))
    os.replace(part, done)
    return found


def _asked(model: FoundationModel, stores: Sequence[str], triples: int | None) -> dict[str, dict[str, float]]:
    return {named(store): columns_of(rank_test(model, Store.open_inference(store), triples)) for store in stores}


def loss_curve(run: Path) -> list[list[float]]:
    """Step and loss of every report of a run."""
    reports = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[report["step"], round(report["loss"], 4)] for report in reports]


def gain(differences: Mapping[str, Sequence[float]]) -> tuple[float, float, float]:
    """Mean over graphs of the mean over seeds, and the 2.5 and 97.5 percentiles when graphs are drawn again."""
    means = np.array([np.mean(values) for values in differences.values()])
    drawn = np.random.default_rng(0).integers(0, len(means), (RESAMPLES, len(means)))
    low, high = np.percentile(means[drawn].mean(1), [2.5, 97.5])
    return float(means.mean()), float(low), float(high)


def _quality(graphs: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Means over graphs, and the MRR of each."""
    means = {metric: float(np.mean([found[metric] for found in graphs.values()])) for metric in ("MRR", "Hits@10")}
    return means | {graph: found["MRR"] for graph, found in graphs.items()}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every variant with every seed (``--repetitions`` of them)."""
    session = begin(
        __file__, str(__doc__), arguments, "preset", "graphs", "stores", "steps", "variants", "folder", repetitions=3
    )
    typed = session.options
    epochs = 10
    shared = [
        f"data.graphs=[{','.join(typed.graphs)}]",
        "train.workers=1",
        f"train.batch_size={BATCH_SIZE}",
        f"train.epochs={epochs}",
        f"train.steps_per_epoch={max(1, typed.steps // epochs)}",
        *(["model.options={width: 8, layers: 2, hidden: 8}"] if session.quick else []),
    ]
    names = rows_wanted(session, VARIANTS)
    triples = 4 if session.quick else TRIPLES
    runs = [(name, seed) for seed in session.repetitions for name in names]
    jobs = [
        (
            load_config(f"preset:{typed.preset}", [*shared, *VARIANTS[name], f"train.seed={seed}"]),
            list(typed.stores),
            Path(typed.folder) / f"{typed.preset}-{name}-{seed}",
            triples,
        )
        for name, seed in runs
    ]
    outcomes = dict(zip(runs, side_by_side(_outcome, jobs), strict=True))
    figures = Figures()
    for seed in session.repetitions:
        torch.manual_seed(seed)
        start = make_model(typed.preset, jobs[0][0].model.options)
        figures.add(UNTRAINED, _quality(_asked(start, typed.stores, triples)))
    for (name, _), outcome in outcomes.items():
        figures.add(name, _quality(outcome["graphs"]))
        figures.add(name, {key: outcome[key] for key in ("validation MRR", "CPU ms/step", "peak MB")})
    gains = {}
    for name in names[1:]:
        for metric in ("MRR", "Hits@10"):
            of_graphs = {
                named(store): [
                    outcomes[name, seed]["graphs"][named(store)][metric]
                    - outcomes[names[0], seed]["graphs"][named(store)][metric]
                    for seed in session.repetitions
                ]
                for store in typed.stores
            }
            gains[f"{name}, {metric}"] = dict(zip(("mean", "low", "high"), gain(of_graphs), strict=True))
    for what, found in gains.items():
        print(
            f"{what}: {found['mean']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}] over uniform, 95 % of resamples"
        )
    settings = {
        "preset": typed.preset,
        "configuration": jobs[0][0].model_dump(),
        "variants": {name: VARIANTS[name] for name in names},
        "steps": typed.steps,
        "triples of each graph": triples,
        "loss by step": {
            f"{name}, seed {seed}": loss_curve(job[2]) for (name, seed), job in zip(runs, jobs, strict=True)
        },
        "gains over uniform": gains,
        "graphs": {named(store): graph_settings(Store.open(store)) for store in typed.graphs},
    }
    return finish(session, settings, figures, part=typed.preset)


if __name__ == "__main__":
    main()
