"""Commands about trained models: rank, predict, import and export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distkg.cli.app import (
    JsonOption,
    RunArgument,
    Split,
    app,
    file_path,
    folder_path,
    print_remarks,
    say,
    say_json,
    show_table,
)
from distkg.printable import printable

if TYPE_CHECKING:
    from distkg.data.store.graph_store import Store
    from distkg.foundation.models import FoundationModel
    from distkg.inference.predict import Best
    from distkg.inference.zero_shot import Reason


class Known(StrEnum):
    exclude = "exclude"
    mark = "mark"
    keep = "keep"


class PublishedFormat(StrEnum):
    ultra = "ultra"
    trix = "trix"
    trix_relations = "trix_relations"
    motif = "motif"
    semma = "semma"


ModelArgument = Annotated[
    Path,
    typer.Argument(
        parser=folder_path,
        metavar="MODEL",
        help="Run folder that `distkg train` wrote, or folder of a foundation model, with --store.",
    ),
]
FanoutsOption = Annotated[
    str,
    typer.Option(
        metavar="K,K,…",
        help="For a foundation model on a large graph: facts of an entity to follow at each step away from the "
        "anchor, such as 50,20,10. Without it, the whole graph is looked at.",
    ),
]
GraphOption = Annotated[
    str | None,
    typer.Option(
        help="What a foundation model reasons from, in place of --store: a file of triples, or a folder with "
        "triples.tsv and what is said of entities: descriptions.tsv, numeric.tsv."
    ),
]
StoreOfModelOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Whose training facts a foundation model reasons from; of a run of embeddings, its own store, where that "
        "has moved.",
    ),
]


@app.command(epilog="Example: distkg evaluate runs/wn18rr --split valid")
def evaluate(
    model: ModelArgument,
    store: StoreOfModelOption = None,
    split: Annotated[Split, typer.Option(help="Which triples to rank.")] = Split.test,
    triples: Annotated[
        int | None, typer.Option(min=1, help="Rank a fixed random part of the split; default: all of it.")
    ] = None,
    fanouts: FanoutsOption = "",
    as_json: JsonOption = False,
) -> None:
    """Rank a split exactly among all entities; show metrics by side, relation and category."""
    from distkg.reporting.tables import metrics_table, relations_table

    if is_foundation_model(model):
        found = _evaluated_foundation(model, store, split, triples=triples, fanouts=_numbers(fanouts))
    else:
        _refuse_fanouts(model, fanouts)
        found = _evaluated_run(model, store, split, triples)
    if as_json:
        say_json(found)
        return
    if "by_side" in found:
        whole = {split.value: found["metrics"], **found["by_side"]}
        show_table(metrics_table(whole, "Filtered ranks among all entities"))
        show_table(metrics_table(found["by_category"], "By category of relation"))
        seen = "By whether facts show the anchor, or the answer, with the relation"
        show_table(metrics_table(found["by_half_link"], seen))
    else:
        show_table(metrics_table({split.value: found["metrics"]}, "Filtered ranks among all relations"))
    show_table(relations_table(found["by_relation"]))


@app.command(epilog="Example: distkg predict runs/wn18rr --anchor 01984902 --relation _hypernym --top 5")
def predict(
    model: ModelArgument,
    anchor: Annotated[str | None, typer.Option(help="Label of the entity that is known.")] = None,
    relation: Annotated[str | None, typer.Option(help="Label of the relation.")] = None,
    inverse: Annotated[
        bool, typer.Option("--inverse", help="Ask for heads: which X has (X, relation, anchor)?")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="Answers per query.")] = 10,
    known: Annotated[
        Known, typer.Option(help="Facts of the store: leave out, mark, or keep unmarked.")
    ] = Known.exclude,
    queries: Annotated[
        Path | None,
        typer.Option(parser=file_path, help="Batch: lines ANCHOR<TAB>RELATION[<TAB>forward|inverse], or predictions."),
    ] = None,
    output: Annotated[Path | None, typer.Option(parser=file_path, help="Batch: .tsv or .parquet to write.")] = None,
    store: StoreOfModelOption = None,
    graph: GraphOption = None,
    explain: Annotated[
        int, typer.Option(min=0, help="Paths of facts to print for each answer of a foundation model.")
    ] = 0,
    fanouts: FanoutsOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the best answers to a query, or to a file of queries."""
    if queries is None and (anchor is None or relation is None):
        raise typer.BadParameter("give --anchor and --relation, or --queries and --output")
    if (queries is None) != (output is None):
        raise typer.BadParameter("--queries and --output belong together")
    if queries is not None:
        single = {
            "--anchor": anchor,
            "--relation": relation,
            "--inverse": inverse,
            "--explain": explain,
            "--json": as_json,
        }
        if unused := [option for option, value in single.items() if value]:
            raise typer.BadParameter(f"{', '.join(unused)}: for one query; a file of --queries says what to ask")
    from distkg.inference import predict as inference

    if output is not None:
        inference.check_output(output)
    with _answering(model, store, graph, _numbers(fanouts)) as (best, facts):
        if queries is not None and output is not None:
            written = inference.predict_file(best, facts, queries, output, top, known.value, warn=_warn)
            say(f"{written:,} answers: {output}")
            return
        query = facts.entity_id(str(anchor)), facts.relation_id(str(relation)) + inverse * facts.num_relations
        _warn_untrained(facts, [query[0]], [query[1]])
        (found,) = inference.predict(best, facts, [query[0]], [query[1]], top, known.value)
        reasons = _reasons(model, facts, query, [answer.entity for answer in found], explain) if explain else []
    if as_json:
        rows = [asdict(answer) for answer in found]
        for row, paths in zip(rows, reasons, strict=False):
            row["reasons"] = [asdict(path) for path in paths]
        say_json(rows)
        return
    from distkg.reporting.tables import predictions_table

    show_table(predictions_table(found))
    for answer, paths in zip(found, reasons, strict=False):
        say(f"{printable(answer.label)}:" + ("" if paths else " no path of facts leads there"))
        for path in paths:
            say(f"  {path.importance:+.3f}  {printable(path.path)}")


@app.command(
    name="predict-relation",
    epilog="Example: distkg predict-relation models/trix_relations --graph facts.tsv --head A --tail B",
)
def predict_relation(
    model: ModelArgument,
    head: Annotated[str, typer.Option(help="Label of the entity that the relation leads from.")],
    tail: Annotated[str, typer.Option(help="Label of the entity that it leads to.")],
    top: Annotated[int, typer.Option(min=1, help="Relations to list.")] = 10,
    known: Annotated[Known, typer.Option(help="Facts of the store: leave out, mark, or keep unmarked.")] = Known.mark,
    store: StoreOfModelOption = None,
    graph: GraphOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the relations that most likely lead from one entity to another, by a model that ranks relations."""
    from distkg.foundation.files import load_model
    from distkg.inference.relations import predict_relations
    from distkg.reporting.tables import text_table

    loaded = load_model(model)
    with _facts_of(loaded, store, graph) as facts:
        ends = facts.entity_id(head), facts.entity_id(tail)
        _warn_untrained(facts, ends, [])
        found = predict_relations(loaded, facts, *ends, top, known.value)
    if as_json:
        say_json([asdict(each) for each in found])
        return
    marked = known is Known.mark
    rows = [
        (str(each.rank), each.relation + ("  (known)" if marked and each.known else ""), f"{each.score:.4f}")
        for each in found
    ]
    show_table(text_table(["rank", "relation", "score"], rows))


@app.command(
    name="import-checkpoint",
    epilog="Example: distkg import-checkpoint ultra_3g.pth --format ultra --to models/ultra_3g",
)
def import_checkpoint(
    file: Annotated[
        Path, typer.Argument(parser=file_path, metavar="FILE", help="Published checkpoint, such as ultra_3g.pth.")
    ],
    to: Annotated[Path, typer.Option(parser=folder_path, metavar="MODEL", help="New folder for the model.")],
    format: Annotated[PublishedFormat, typer.Option(help="Whose checkpoint it is.")] = PublishedFormat.ultra,
) -> None:
    """Make a model folder of a published checkpoint of a foundation model."""
    from distkg.foundation.files import import_checkpoint as read_checkpoint
    from distkg.foundation.files import save_model

    model = read_checkpoint(file, format.value)
    save_model(model, to)
    say(f"{model.name}, {sum(part.numel() for part in model.parameters()):,} parameters: {to}")


@app.command(epilog="Example: distkg export runs/wn18rr --to exports/wn18rr")
def export(
    run: RunArgument,
    to: Annotated[Path, typer.Option(parser=folder_path, help="Folder for vectors, labels and model.json.")],
    index: Annotated[bool, typer.Option("--index", help="Also write a FAISS index of the entities.")] = False,
    store: Annotated[str, typer.Option(help="Store of the run, where it has moved.")] = "",
) -> None:
    """Write vectors and labels as safetensors and Parquet, so that NumPy alone can recompute a score."""
    from distkg.embedding.load_run import load_run
    from distkg.inference.export import export_model
    from distkg.sharding.ranks import Ranks

    if is_foundation_model(run):
        raise typer.BadParameter(
            f"{run} is a foundation model, which has no vectors of entities to export: its folder is all that "
            "`distkg predict` and `distkg evaluate` need"
        )
    model, own, config = load_run(run, Ranks.single(), store, scope="labels")
    export_model(model, own, config.model, to, index=index)
    say(f"export: {to}")


def is_foundation_model(model: Path) -> bool:
    from distkg.foundation.files import is_model

    return is_model(model)


def _evaluated_run(run: Path, store: str | None, split: Split, triples: int | None) -> dict[str, Any]:
    from distkg.embedding.load_run import load_run
    from distkg.evaluation.metrics import evaluate_triples
    from distkg.sharding.ranks import Ranks

    model, own, config = load_run(run, Ranks.single(), store or "")
    settings = config.evaluate
    sizes = {"batch_size": settings.batch_size, "memory_mb": settings.memory_mb}
    return evaluate_triples(model, own, split.value, triples, **sizes)


def _evaluated_foundation(
    model: Path, store: str | None, split: Split, triples: int | None, fanouts: list[int]
) -> dict[str, Any]:
    from distkg.data.store.graph_store import Store
    from distkg.foundation.files import load_model
    from distkg.inference.zero_shot import evaluate_zero_shot
    from distkg.relation_prediction.ranking import evaluate_relations

    if store is None:
        raise typer.BadParameter(f"{model} is a foundation model: give the graph to be asked about with --store")
    loaded, facts = load_model(model), Store.open_inference(store)
    if loaded.ranks == "relations":
        _refuse_fanouts(model, ",".join(map(str, fanouts)))
        return evaluate_relations(loaded, facts, split.value, triples=triples)
    return evaluate_zero_shot(loaded, facts, split.value, fanouts=fanouts, triples=triples)


def _reasons(model: Path, facts: Store, query: tuple[int, int], answers: list[int], top: int) -> list[list[Reason]]:
    from distkg.foundation.files import load_model
    from distkg.inference.zero_shot import reasons_for

    if not is_foundation_model(model):
        raise typer.BadParameter(f"{model} is a run: --explain is for foundation models, which reason along facts")
    return reasons_for(load_model(model), facts, *query, answers, top)


def _refuse_other_graph(run: Path, **given: str | None) -> None:
    if options := " and ".join(f"--{name}" for name, value in given.items() if value is not None):
        raise typer.BadParameter(
            f"{options}: for foundation models; {run} is a run, whose vectors belong to the entities of its own store"
        )


def _refuse_fanouts(model: Path, fanouts: str) -> None:
    if fanouts:
        raise typer.BadParameter(
            f"--fanouts: for foundation models that rank entities, which reason along facts; {model} is none"
        )


def _warn_untrained(facts: Store, entities: Sequence[int], relations: Sequence[int]) -> None:
    from distkg.inference.untrained import untrained_warnings

    for warning in untrained_warnings(facts, entities, relations):
        _warn(warning)


def _warn(warning: str) -> None:
    say(f"warning: {warning}", err=True)


@contextmanager
def _answering(model: Path, store: str | None, graph: str | None, fanouts: list[int]) -> Iterator[tuple[Best, Store]]:
    """What finds the best answers of a run or of a foundation model, and the store that has the labels."""
    from distkg.inference import predict as inference

    if not is_foundation_model(model):
        from distkg.embedding.load_run import load_run
        from distkg.sharding.ranks import Ranks

        _refuse_other_graph(model, graph=graph)
        _refuse_fanouts(model, ",".join(map(str, fanouts)))
        loaded, own, _ = load_run(model, Ranks.single(), store or "")
        yield inference.best_of_model(loaded), own
        return
    from distkg.foundation.files import load_model
    from distkg.inference.zero_shot import best_zero_shot

    reasoning = load_model(model)
    with _facts_of(reasoning, store, graph) as facts:
        yield best_zero_shot(reasoning, facts, fanouts=fanouts), facts


def _facts_of(model: FoundationModel, store: str | None, graph: str | None) -> AbstractContextManager[Store]:
    """The store to reason from, for as long as it is needed."""
    from distkg.data.store.graph_store import Store
    from distkg.inference.fresh_graph import fresh_graph

    if (store is None) == (graph is None):
        raise typer.BadParameter(
            f"{model.name} is a foundation model: give the graph to reason from, --store or --graph"
        )
    if store is not None:
        return nullcontext(Store.open_inference(store))
    return fresh_graph(str(graph), model.reads, print_remarks)


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        found = [0]
    if any(number < 1 for number in found):
        raise typer.BadParameter(f"{text!r} must be whole numbers such as 50,20,10", param_hint="--fanouts")
    return found
