"""A graph that grows: a tenth of the entities is held back, and added to a trained run by `distkg extend`.

Quality and time, not speed: each row is a run in a process of its own thread, and its best validated checkpoint is
ranked exactly on the test split. "MRR old" is of test facts whose entities are both old, "MRR new" of those with a new
entity; all are ranked among all entities, except those of the old model, which knows old ones alone. "CPU s" is the
processor time of training and of making the rows. The figures of a row are one per seed, which decides the entities
that are held back too. Rows that are done stay done in ``--folder``.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import Figures, begin, finish, graph_settings, known_answers_of
from benchmarks.processes import side_by_side
from distkg.config import load_config
from distkg.data.extend import extend_store
from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store
from distkg.embedding.load_run import load_run
from distkg.evaluation.metrics import ranking_metrics
from distkg.evaluation.ranking import rank_answers
from distkg.sharding.ranks import Ranks
from distkg.training.extend import extend_run
from distkg.training.family import FirstRows
from distkg.training.run import train_on_rank
from distkg.training.run_dir import RunFolder

SHARE = 0.1
SPLITS = ("train", "valid", "test")
CHANGES = ("train.workers=1", "model.dim=128", "train.epochs=20")
"""Changes of the preset: a row takes less than a minute of one core."""


@dataclass(frozen=True)
class Growth:
    """A row of the table: how a run goes on."""

    first_rows: FirstRows
    facts: str
    old_rows: str


VARIANTS = {
    "neighbours, all facts, free": Growth("neighbours", "all", "free"),
    "neighbours, all facts, frozen": Growth("neighbours", "all", "frozen"),
    "neighbours, new facts, free": Growth("neighbours", "new", "free"),
    "neighbours, new facts, frozen": Growth("neighbours", "new", "frozen"),
    "random, all facts, free": Growth("random", "all", "free"),
    "random, new facts, frozen": Growth("random", "new", "frozen"),
}
Row = dict[str, float]


@dataclass(frozen=True)
class Work:
    """What a process does: every row with one seed."""

    source: Path
    preset: str
    folder: Path
    epochs: int
    seed: int
    changes: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every row with every seed; ``--repetitions`` seeds."""
    session = begin(__file__, str(__doc__), arguments, "source", "preset", "epochs", "folder", repetitions=3)
    options = session.options
    changes = (*CHANGES, *(("train.epochs=2", "model.dim=16", "evaluate.every=1") if session.quick else ()))
    work = [
        Work(Path(options.source), options.preset, Path(options.folder), int(options.epochs), seed, changes)
        for seed in session.repetitions
    ]
    figures = Figures()
    for rows in side_by_side(_rows, work):
        for row, values in rows.items():
            figures.add(row, values)
    first = Path(options.folder) / "seed-0"
    settings: dict[str, Any] = {"preset": options.preset, "epochs": options.epochs, "share": SHARE}
    settings |= {"changes": changes}
    settings |= {name: graph_settings(Store.open(str(first / name))) for name in ("old-store", "all-store")}
    return finish(session, settings, figures, part=options.preset)


def _rows(work: Work) -> dict[str, Row]:
    torch.set_num_threads(1)
    folder = work.folder / f"seed-{work.seed}"
    old_entities = hold_back(work.source, folder, work.seed)
    for name in ("old", "all"):
        if not (folder / f"{name}-store").exists():
            prepare(str(folder / name), str(folder / f"{name}-store"), seed=work.seed)
    kept = folder / "rows.json"
    rows: dict[str, Row] = json.loads(kept.read_text()) if kept.exists() else {}

    def timed(row: str, name: str, train: Callable[[str], Path]) -> None:
        if row in rows:
            return
        shutil.rmtree(folder / f"{name}-run", ignore_errors=True)
        started, processor = time.perf_counter(), time.process_time()
        run = train(name)
        seconds = {"minutes": (time.perf_counter() - started) / 60, "CPU s": time.process_time() - processor}
        rows[row] = {**mrr(run, old_entities), **seconds}
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(rows))
        os.replace(part, kept)

    timed("old model", "old", partial(_trained, work, folder))
    timed("neighbours, untrained", "untrained", partial(_extended, work, folder, Growth("neighbours", "all", "free")))
    for row, growth in VARIANTS.items():
        timed(row, row.replace(", ", "-").replace(" ", "-"), partial(_grown, work, folder, growth))
    timed("from scratch", "all", partial(_trained, work, folder))
    return rows


def hold_back(source: Path, folder: Path, seed: int) -> set[str]:
    """Write the facts of a graph to ``all``, those without held-back entities to ``old``, and the others to ``new``;
    return the entities of ``old``."""
    facts = {split: _lines(next(source.glob(f"{split}.*"))) for split in SPLITS}
    entities = sorted({entity for lines in facts.values() for head, _, tail in lines for entity in (head, tail)})
    rng = np.random.default_rng(seed)
    held = set(rng.choice(entities, round(SHARE * len(entities)), replace=False).tolist())
    old = set()
    for split, lines in facts.items():
        is_new = [head in held or tail in held for head, _, tail in lines]
        parts = {"all": lines, "old": [], "new": []}
        for line, new in zip(lines, is_new, strict=True):
            parts["new" if new else "old"].append(line)
        for name, part in parts.items():
            file = folder / name / f"{split}.tsv"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join("\t".join(line) + "\n" for line in part), encoding="utf-8")
        old |= {entity for head, _, tail in parts["old"] for entity in (head, tail)}
    return old


def _lines(file: Path) -> list[list[str]]:
    return [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]


def _trained(work: Work, folder: Path, name: str) -> Path:
    store, run = folder / f"{name}-store", folder / f"{name}-run"
    seeded = [f"data.store={store}", f"train.seed={work.seed}", *work.changes]
    train_on_rank(load_config(f"preset:{work.preset}", seeded), run, Ranks.single())
    return run


def _extended(work: Work, folder: Path, growth: Growth, name: str) -> Path:
    run, store = folder / f"{name}-run", folder / f"{name}-store"
    shutil.rmtree(store, ignore_errors=True)
    changes = [f"train.epochs={work.epochs}", f"train.facts={growth.facts}", f"train.old_rows={growth.old_rows}"]
    extend_run(
        folder / "old-run",
        run,
        lambda base: extend_store(base, str(folder / "new"), str(store), seed=work.seed),
        str(store),
        first_rows=growth.first_rows,
        changes=[*changes, "evaluate.every=1"],
    )
    return run


def _grown(work: Work, folder: Path, growth: Growth, name: str) -> Path:
    run = _extended(work, folder, growth, name)
    train_on_rank(RunFolder(run).read_config(), run, Ranks.single(), resume=True)
    return run


def mrr(run: Path, old_entities: set[str]) -> Mapping[str, float]:
    """Test MRR of facts of old entities, of facts with new ones, and of all; only the parts that are there."""
    model, store, config = load_run(run, Ranks.single(), held=True)
    is_old = np.array([label in old_entities for label in store.entity_labels().to_pylist()])
    facts = store.triples("test")
    among_old = is_old[facts[:, 0]] & is_old[facts[:, 2]]
    parts = {"MRR old": facts[among_old], "MRR new": facts[~among_old], "MRR all": facts}
    batch_size, memory_mb = config.evaluate.batch_size, config.evaluate.memory_mb

    def value(part: NDArray[np.int32]) -> float:
        known = known_answers_of(store, part)
        return ranking_metrics(rank_answers(model, part, known, batch_size=batch_size, memory_mb=memory_mb))["mrr"]

    return {
        name: value(part) for name, part in parts.items() if len(part) and not (name == "MRR all" and among_old.all())
    }


if __name__ == "__main__":
    main()
