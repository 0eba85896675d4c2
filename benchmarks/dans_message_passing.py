"""DANS-KGC's negatives for NBFNet, whose scores come from paths, beside uniform ones: the same epochs, ranked on test.

The vectors that the diffusion model works on are those of a RotatE trained before (preset negatives_rotate, for
``--seconds``), as NBFNet has none; what is made is snapped to entities. Quality, not speed: one process of one thread
for each training, as many side by side as there are cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common import Figures, begin, finish, graph_settings
from benchmarks.processes import side_by_side
from distkg.config import RunConfig, load_config
from distkg.data.store.graph_store import Store
from distkg.sharding.ranks import Ranks
from distkg.training.run import train_on_rank
from distkg.training.run_dir import Record

METRICS = {"mrr": "MRR", "hits@10": "Hits@10", "hits@1": "Hits@1"}
PUBLISHED = {"umls": 0.972, "family": 0.994}  # MRR, table 3 of the paper, whose scorer is not named


def _trained(job: tuple[RunConfig, Path]) -> Record:
    torch.set_num_threads(1)
    return train_on_rank(*job, Ranks.single())


def main(arguments: Sequence[str] | None = None) -> Path:
    """Uniform negatives and DANS's with every seed (``--repetitions`` of them)."""
    session = begin(__file__, str(__doc__), arguments, "store", "seconds", "epochs", repetitions=3)
    typed, store = session.options, f"data.store={session.store}"
    small = ["model.options={width: 8, layers: 2, aggregate: sum}"] if session.quick else []
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        before, vectors, runs = [], {}, []
        for seed in session.repetitions:
            vectors[seed] = Path(folder) / f"rotate-{seed}"
            limit = [store, f"train.time_limit_seconds={typed.seconds}", f"train.seed={seed}"]
            before.append((load_config("preset:negatives_rotate", limit), vectors[seed]))
            hard = ["negatives.source=dans", f"negatives.vectors={vectors[seed]}"]
            for row, changes in (("uniform", []), ("DANS", hard)):
                changed = [store, f"train.epochs={typed.epochs}", f"train.seed={seed}", *changes, *small]
                runs.append((row, (load_config("preset:nbfnet", changed), Path(folder) / f"{row}-{seed}")))
        for result in side_by_side(_trained, before):
            figures.add("RotatE", {column: result["metrics"]["test"][name] for name, column in METRICS.items()})
        for (row, _), result in zip(runs, side_by_side(_trained, [job for _, job in runs]), strict=True):
            test = result["metrics"]["test"]
            columns = {column: test[name] for name, column in METRICS.items()}
            figures.add(f"NBFNet, {row}", {**columns, "seconds": result["train"]["seconds"]})
    name = Path(session.store).name
    settings = {
        "configuration": runs[0][1][0].model_dump(),
        "epochs": typed.epochs,
        "published MRR": PUBLISHED.get(name),
        "graph": graph_settings(Store.open(session.store)),
    }
    return finish(session, settings, figures, part=name)


if __name__ == "__main__":
    main()
