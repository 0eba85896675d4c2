"""Demonstration of a whole run: generate a graph with known rules, train on it, and predict held-out facts."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape

from distkg.cluster.launch import launch_training
from distkg.config import RunConfig, load_config
from distkg.data.generate import generate
from distkg.data.storage.local_path import local_path
from distkg.data.store.graph_store import Store
from distkg.embedding.load_run import load_run
from distkg.embedding.model import Model
from distkg.inference.predict import best_of_model, predict
from distkg.planning.preflight import plan_run
from distkg.printable import printable
from distkg.reporting.report import write_report
from distkg.reporting.tables import make_console, metrics_table, plan_summary, predictions_table
from distkg.sharding.ranks import Ranks

ENTITIES, RELATIONS, TRIPLES, SEED = 2000, 12, 20_000, 1
EXAMPLES, ANSWERS = 3, 3


def run_demo(folder: Path | None, workers: int, console: Console | None = None) -> Path:
    """Generate a graph, train on ``workers`` local Ray workers, and print metrics, predictions and the report's path.

    Args:
        folder: folder for the store and the run; default: a new folder in ``runs``.

    Returns:
        The path of the report.

    Raises:
        StoreError, RunFolderError: ``folder`` already holds a demonstration.
    """
    console = console or make_console()
    folder = local_path(folder or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S"), "demonstration folder")
    store, run = folder / "store", folder / "run"
    console.print(f"[bold]1. Graph[/] with known logical rules, in {escape(printable(str(store)))}")
    graph = generate(str(store), entities=ENTITIES, relations=RELATIONS, triples=TRIPLES, seed=SEED, partitions=workers)
    console.print(
        f"   {graph.entities:,} entities, {graph.relations} relations, {graph.triples['train']:,} training triples"
    )
    config = load_config("preset:demo", [f"data.store={store}", f"train.workers={workers}"])
    _train(config, run, console)
    _show_examples(run, console)
    report = write_report(run)
    console.print(f"[bold]Report:[/] {escape(printable(str(report)))}", soft_wrap=True)
    return report


def _train(config: RunConfig, run: Path, console: Console) -> None:
    console.print(f"[bold]2. Training[/] {config.model.name} on {config.train.workers} Ray workers")
    console.print(f"   {plan_summary(plan_run(config))}")
    result = launch_training(config, run)
    console.print(metrics_table(result["metrics"], "Filtered ranks among all entities"))


def _show_examples(run: Path, console: Console) -> None:
    model, store, _ = load_run(run, Ranks.single())
    console.print("[bold]3. Predictions[/] for facts of the test split, which training has not seen")
    for head, relation, tail in _examples(store):
        _show(model, store, head, relation, tail, console)


def _examples(store: Store) -> list[tuple[int, int, int]]:
    """Draw test triples of different relations with the demonstration's seed."""
    triples = np.random.default_rng(SEED).permutation(store.triples("test"))
    _, first = np.unique(triples[:, 1], return_index=True)
    return [(int(h), int(r), int(t)) for h, r, t in triples[np.sort(first)[:EXAMPLES]]]


def _show(model: Model, store: Store, head: int, relation: int, tail: int, console: Console) -> None:
    """Print the best answers to (head, relation, ?) without other known facts, with a mark at the held-out one."""
    (answers,) = predict(best_of_model(model), store, [head], [relation], top=store.num_entities, known="mark")
    unknown = [answer for answer in answers if answer.entity == tail or not answer.known]
    best = [replace(answer, rank=rank) for rank, answer in enumerate(unknown[:ANSWERS], 1)]
    label = store.relation_labels()[relation].as_py()
    title = f"({store.entity_labels_of(np.array([head]))[0]}, {label}, ?)"
    console.print(predictions_table(best, title, right=tail))
