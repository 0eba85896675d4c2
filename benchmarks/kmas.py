"""KMAS beside uniform and corrupt negatives: foundation models trained in equal steps, asked about unseen graphs.

Quality, not speed: every variant and seed is trained on ``--graphs`` in one process of one thread, as many side by
side as there are cores, then ranks test triples of ``--stores`` with the model of its best validation. One more row
has the model that training begins with. Differences from uniform negatives come with a paired bootstrap over graphs.
``--folder`` keeps what is done: the same command goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Figures, begin, finish, graph_settings, rows_wanted
from benchmarks.kept_runs import KeptRun, loss_curve, outcomes
from benchmarks.zero_shot import columns_of, named, rank_test
from distkg.config import load_config
from distkg.data.store.graph_store import Store
from distkg.foundation.model_files import make_model
from distkg.foundation.models import FoundationModel

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


def _asked(model: FoundationModel, stores: Sequence[str], triples: int | None) -> dict[str, dict[str, float]]:
    return {named(store): columns_of(rank_test(model, Store.open_inference(store), triples)) for store in stores}


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
    names_and_seeds = [(name, seed) for seed in session.repetitions for name in names]
    ask = partial(_asked, stores=typed.stores, triples=triples)
    runs = {
        (name, seed): KeptRun(
            load_config(f"preset:{typed.preset}", [*shared, *VARIANTS[name], f"train.seed={seed}"]),
            Path(typed.folder) / f"{typed.preset}-{name}-{seed}",
            ask,
        )
        for name, seed in names_and_seeds
    }
    found = dict(zip(runs, outcomes(list(runs.values())), strict=True))
    configuration = runs[names[0], 0].config
    figures = Figures()
    for seed in session.repetitions:
        torch.manual_seed(seed)
        start = make_model(typed.preset, configuration.model.options)
        figures.add(UNTRAINED, _quality(ask(start)))
    for (name, _), outcome in found.items():
        figures.add(name, _quality(outcome["graphs"]))
        figures.add(name, {key: outcome[key] for key in ("validation MRR", "CPU ms/step", "peak MB")})
    gains = {}
    for name in names[1:]:
        for metric in ("MRR", "Hits@10"):
            of_graphs = {
                named(store): [
                    found[name, seed]["graphs"][named(store)][metric]
                    - found[names[0], seed]["graphs"][named(store)][metric]
                    for seed in session.repetitions
                ]
                for store in typed.stores
            }
            gains[f"{name}, {metric}"] = dict(zip(("mean", "low", "high"), gain(of_graphs), strict=True))
    for what, shares in gains.items():
        print(f"{what}: {shares['mean']:+.4f} [{shares['low']:+.4f}, {shares['high']:+.4f}] over uniform (95 %)")
    settings = {
        "preset": typed.preset,
        "configuration": configuration.model_dump(),
        "variants": {name: VARIANTS[name] for name in names},
        "steps": typed.steps,
        "triples of each graph": triples,
        "loss by step": {f"{name}, seed {seed}": loss_curve(run) for (name, seed), run in runs.items()},
        "gains over uniform": gains,
        "graphs": {named(store): graph_settings(Store.open(store)) for store in typed.graphs},
    }
    return finish(session, settings, figures, part=typed.preset)


if __name__ == "__main__":
    main()
