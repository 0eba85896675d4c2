"""Foundation models on every inductive graph at hand, in one table: leaked and clean graphs, half-links, ties, gains.

``--models`` are folders of models or runs, or files of published checkpoints (``NAME=PATH`` names one). Every folder of
``--data`` with a file ``inference`` is a graph that they rank the test triples of. A graph is *leaked* for a model that
learned from its family (``--learned-from``), and clean otherwise. MRR is of realistic ranks, which lose half of the
ties, and of pessimistic ones, which lose all, as published figures do. Gains over the first model are paired: their
intervals come from drawing graphs again, and from drawing the test triples of each graph again. Beside the result file
lies a page. ``--folder`` keeps stores and ranks, so that another model costs its own ranks alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arena_page import write_arena_page
from benchmarks.common import BenchmarkError, Figures, begin, finish, graph_settings
from benchmarks.kmas import gain
from benchmarks.processes import alone
from benchmarks.zero_shot import columns_of, rank_test, some_test_triples
from distkg.data.prepare import prepare
from distkg.data.splits.inductive import INFERENCE, TRAINING
from distkg.data.store.graph_store import Store
from distkg.evaluation.metrics import metrics_by_half_link
from distkg.evaluation.ranking import Ranking
from distkg.foundation.model_files import (
    PublishedFormat,
    import_checkpoint,
    load_model,
    save_model,
    weights_sha256,
)

RESAMPLES = 2000
QUICK_TRIPLES = 4
PREFIXES = {"FB": "FB", "WN": "WN", "NELL": "NELL", "NL": "NELL", "WK": "WK", "CODEX": "CoDEx", "YAGO": "YAGO"}
"""Beginning of a part of a data set's name → its family, the graph that it was cut from."""

CLEAN, LEAKED, NEW_ENTITIES, NEW_RELATIONS = "clean", "leaked", "clean, new entities", "clean, new relations too"


@dataclass(frozen=True)
class Contender:
    """Model that takes part.

    Attributes:
        name: shown.
        folder: of the model, or of the run that trained it.
        learned_from: families of the graphs that it learned from.
    """

    name: str
    folder: Path
    learned_from: frozenset[str]


@dataclass(frozen=True)
class InductiveGraph:
    """Inference graph of a data set.

    Attributes:
        name: of the data set.
        address: of its store.
        family: as of ``family_of``.
        new_relations: whether it has relations that its training graph lacks.
    """

    name: str
    address: str
    family: str
    new_relations: bool


def family_of(name: str) -> str:
    """Return the family of a data set by its name.

    >>> family_of("GraIL-FB15k-237-v1"), family_of("InGram-NL-50"), family_of("Metafam")
    ('FB', 'NELL', 'Metafam')
    """
    found = [family for part in name.split("-") for begin, family in PREFIXES.items() if part.upper().startswith(begin)]
    return found[0] if found else name


def contenders(
    texts: Sequence[str], learned_from: Sequence[str], format: PublishedFormat, folder: Path
) -> list[Contender]:
    """Read ``--models`` and ``--learned-from``; checkpoint files become model folders in ``folder``.

    Raises:
        BenchmarkError: two models of one name, or families of a model that is not there.
    """
    named = [_name_and_path(text) for text in texts]
    names = [name for name, _ in named]
    families = _families(learned_from, names)
    if len(set(names)) < len(names):
        raise BenchmarkError(f"--models: two models have one name among {', '.join(names)}. Write NAME=PATH")
    return [Contender(name, _model_folder(name, path, format, folder), families[name]) for name, path in named]


def _name_and_path(text: str) -> tuple[str, Path]:
    name, _, path = text.rpartition("=")
    return name or Path(path.rstrip("/")).stem, Path(path)


def _families(texts: Sequence[str], names: Sequence[str]) -> dict[str, frozenset[str]]:
    """Return the families of each model: FAMILY is of all models, NAME=FAMILY,FAMILY of one."""
    families: dict[str, set[str]] = {name: set() for name in names}
    for text in texts:
        name, _, listed = text.rpartition("=")
        if name and name not in families:
            raise BenchmarkError(f"--learned-from {text}: there is no model {name}. There are: {', '.join(names)}")
        for each in [name] if name else names:
            families[each] |= set(listed.split(","))
    return {name: frozenset(found) for name, found in families.items()}


def _model_folder(name: str, path: Path, format: PublishedFormat, folder: Path) -> Path:
    if not path.is_file():
        return path
    imported = folder / "models" / name
    save_model(import_checkpoint(path, format), imported)
    return imported


def inductive_graphs(data: Path, folder: Path) -> list[InductiveGraph]:
    """Prepare the inductive data sets of a folder, those that are not in ``folder`` yet, and return their graphs.

    Raises:
        BenchmarkError: there are none.
    """
    sources = sorted(source for source in data.iterdir() if any(source.glob("inference.*")))
    if not sources:
        raise BenchmarkError(f"{data} holds no folder with a file `inference`: name a folder of inductive data sets")
    return [_prepared(source, folder / "stores" / source.name) for source in sources]


def _prepared(source: Path, address: Path) -> InductiveGraph:
    if not (address / INFERENCE).exists():
        prepare(str(source), str(address))
    training, inference = (
        set(Store.open(str(address / graph)).relation_labels().to_pylist()) for graph in (TRAINING, INFERENCE)
    )
    return InductiveGraph(source.name, str(address / INFERENCE), family_of(source.name), bool(inference - training))


def rankings(
    models: Sequence[Contender], graphs: Sequence[InductiveGraph], triples: int | None, folder: Path
) -> dict[tuple[str, str], Ranking]:
    """Return the ranks of each model on the test triples of each graph, by their names; ``folder`` keeps them."""
    kept = {
        (model.name, graph.name): _kept(model, graph, triples, folder / "ranks") for model in models for graph in graphs
    }
    pairs = [(model, graph) for model in models for graph in graphs]
    missing = [pair for pair in pairs if not kept[pair[0].name, pair[1].name].is_file()]
    if missing:
        jobs = [(model.folder, graph.address, kept[model.name, graph.name]) for model, graph in missing]
        alone(_rank_all, jobs, triples)
    return {names: _read(path) for names, path in kept.items()}


def _kept(model: Contender, graph: InductiveGraph, triples: int | None, folder: Path) -> Path:
    """Return the file of the ranks of a model's weights on a graph."""
    weights = weights_sha256(model.folder)
    if weights is None:
        raise BenchmarkError(f"--models: {model.folder} holds no weights of a model")
    return folder / f"{weights[:16]}-{graph.name}-{triples or 'all'}.npz"


def _rank_all(jobs: Sequence[tuple[Path, str, Path]], triples: int | None) -> None:
    """Write the ranks of each model, store and file."""
    for model, address, path in jobs:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **vars(rank_test(load_model(model), Store.open(address), triples)))


def _read(path: Path) -> Ranking:
    with np.load(path) as arrays:
        return Ranking(**arrays)


def groups_of(contender: Contender, graphs: Sequence[InductiveGraph]) -> dict[str, list[str]]:
    """Return the names of a model's graphs by group, without empty groups."""
    clean = [graph for graph in graphs if graph.family not in contender.learned_from]
    groups = {
        "all": list(graphs),
        LEAKED: [graph for graph in graphs if graph.family in contender.learned_from],
        CLEAN: clean,
        NEW_ENTITIES: [graph for graph in clean if not graph.new_relations],
        NEW_RELATIONS: [graph for graph in clean if graph.new_relations],
    }
    return {name: [graph.name for graph in members] for name, members in groups.items() if members}


def reciprocal_ranks(ranking: Ranking) -> np.ndarray:
    """Return the mean of both queries' reciprocal ranks for each triple: float64 [n]."""
    return np.asarray((1 / ranking.realistic).reshape(2, -1).mean(0))


def paired_gain(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the mean over graphs of the difference of MRR, with 95 % intervals: over graphs and over triples.

    Args:
        ours, theirs: reciprocal ranks of the same triples of each graph.
    """
    differences = {name: ours[name] - theirs[name] for name in ours}
    mean, low, high = gain({name: [float(each.mean())] for name, each in differences.items()})
    rng, drawn = np.random.default_rng(0), np.zeros(RESAMPLES)
    for each in differences.values():
        drawn += [float(each[rng.integers(len(each), size=len(each))].mean()) for _ in range(RESAMPLES)]
    low_of_triples, high_of_triples = np.percentile(drawn / len(differences), [2.5, 97.5])
    return {
        "mean": mean,
        "low over graphs": low,
        "high over graphs": high,
        "low over triples": float(low_of_triples),
        "high over triples": float(high_of_triples),
    }


def _gains(
    models: Sequence[Contender], graphs: Sequence[InductiveGraph], found: Mapping[tuple[str, str], Ranking]
) -> list[dict[str, Any]]:
    """Return the gains of each further model over the first, on all graphs and on those that are clean for both."""
    first, gains = models[0], []
    for model in models[1:]:
        of_both = first.learned_from | model.learned_from
        clean = [graph.name for graph in graphs if graph.family not in of_both]
        for group, names in (("all", [graph.name for graph in graphs]), ("clean for both", clean)):
            if names:
                ours, theirs = (
                    {name: reciprocal_ranks(found[each.name, name]) for name in names} for each in (model, first)
                )
                pair = {"model": model.name, "over": first.name, "graphs": group, "number": len(names)}
                gains.append({**pair, **paired_gain(ours, theirs)})
    return gains


def _half_links(graph: InductiveGraph, ranking: Ranking) -> dict[str, dict[str, float]]:
    store = Store.open(graph.address)
    found = metrics_by_half_link(ranking, store.iter_triples(["train"]), store.num_relations)
    return {name: {"MRR": each["mrr"], "share": each["queries"] / len(ranking.answers)} for name, each in found.items()}


def summaries(
    models: Sequence[Contender],
    graphs: Sequence[InductiveGraph],
    figures: Mapping[tuple[str, str], Mapping[str, float]],
) -> dict[str, dict[str, dict[str, float]]]:
    """Return for each model and group of graphs the unweighted means over graphs; models with the highest MRR on clean
    graphs come first."""

    def means(model: Contender, names: Sequence[str]) -> dict[str, float]:
        rows = [figures[model.name, name] for name in names]
        columns = ("MRR", "Hits@10", "MRR, ties lost", "Hits@10, ties lost")
        return {"graphs": len(rows), **{column: float(np.mean([row[column] for row in rows])) for column in columns}}

    found = {
        model.name: {group: means(model, names) for group, names in groups_of(model, graphs).items()}
        for model in models
    }
    return dict(sorted(found.items(), key=lambda item: -item[1].get(CLEAN, item[1]["all"])["MRR"]))


def main(arguments: Sequence[str] | None = None) -> Path:
    """Every model on every graph."""
    needs = ("models", "data", "folder", "learned-from", "format")
    session = begin(__file__, str(__doc__), arguments, *needs, repetitions=1)
    typed, figures = session.options, Figures()
    folder, triples = Path(typed.folder), QUICK_TRIPLES if session.quick else None
    models = contenders(typed.models, typed.learned_from, typed.format, folder)
    graphs = inductive_graphs(Path(typed.data), folder)
    found = rankings(models, graphs, triples, folder)
    for (model_name, graph_name), ranking in found.items():
        figures.add(f"{model_name}, {graph_name}", columns_of(ranking) | {"queries": len(ranking.answers)})
    columns = {key: columns_of(ranking) for key, ranking in found.items()}
    half_links = {
        model.name: {graph.name: _half_links(graph, found[model.name, graph.name]) for graph in graphs}
        for model in models
    }
    settings = {
        "models": {
            model.name: {
                "model": load_model(model.folder).name,
                "weights": weights_sha256(model.folder),
                "learned from": sorted(model.learned_from),
                "groups": groups_of(model, graphs),
            }
            for model in models
        },
        "graphs": {
            graph.name: {
                "family": graph.family,
                "new relations": graph.new_relations,
                "test triples ranked": len(some_test_triples(Store.open(graph.address), triples)),
                **graph_settings(Store.open(graph.address)),
            }
            for graph in graphs
        },
        "means over graphs": summaries(models, graphs, columns),
        "gains over the first model": _gains(models, graphs, found),
        "half-links": half_links,
    }
    written = finish(session, settings, figures, part="-".join(model.name for model in models))
    print(f"page: {write_arena_page(written)}")
    return written


if __name__ == "__main__":
    main()
